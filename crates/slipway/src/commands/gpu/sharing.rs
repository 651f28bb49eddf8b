//! `slipway gpu mig` and `slipway gpu share`: MIG instances and sharing strategies.

use std::io::Read;
use std::path::Path;

use slipway_core::gpu_settings::selector::Selector;
use slipway_core::units;
use slipway_gpu::mig::{self, Change, Config, Geometry, Instance, Layout, Placed, Plan};
use slipway_gpu::nvml::Nvml;
use slipway_gpu::share::{self, Workloads};
use slipway_gpu::{GpuError, draw, sheet};

use super::{Context, nvml};
use crate::Failure;
use crate::cli::Format;
use crate::cli::gpu as cli;
use crate::output::{Table, confirm, print, print_note, print_text};

/// Reads a file; `-` is standard input, of at most 16 MiB.
pub(super) fn read(path: &Path) -> Result<String, GpuError> {
    let io = |source| GpuError::Io { what: path.display().to_string(), source };
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().take(16 << 20).read_to_string(&mut text).map_err(io)?;
        return Ok(text);
    }
    std::fs::read_to_string(path).map_err(io)
}

fn family(name: &str) -> Result<Geometry, GpuError> {
    Geometry::family(name).ok_or_else(|| {
        let names = mig::families().collect::<Vec<_>>().join(", ");
        GpuError::Invalid(format!("there is no MIG family '{name}'; known families are {names}"))
    })
}

pub(super) fn mig(context: &Context, fixture: Option<&str>, verb: cli::Mig) -> Result<(), Failure> {
    match verb {
        cli::Mig::Ls => ls(context, &nvml(fixture)?),
        cli::Mig::Profiles { family: Some(name) } => {
            profiles(context, &family(&name)?);
            Ok(())
        }
        cli::Mig::Profiles { family: None } => {
            let layouts = mig::layout(&nvml(fixture)?)?;
            let first =
                layouts.first().ok_or_else(|| GpuError::Impossible("no GPU of this machine supports MIG".into()))?;
            profiles(context, &first.geometry);
            Ok(())
        }
        cli::Mig::Plan { from_workloads: Some(file), family, .. } => share_file(context, fixture, &file, family, true),
        cli::Mig::Plan { desired, family: Some(name), .. } => plan_family(context, &family(&name)?, &desired),
        cli::Mig::Plan { desired, .. } => {
            let nvml = nvml(fixture)?;
            let layouts = mig::layout(&nvml)?;
            let plan = plan(&nvml, &layouts, &desired)?;
            show_plan(context, &layouts, &plan);
            if plan.is_empty() { Ok(()) } else { Err(Failure::Findings) }
        }
        cli::Mig::Apply { desired } => {
            let nvml = nvml(fixture)?;
            let layouts = mig::layout(&nvml)?;
            let plan = plan(&nvml, &layouts, &desired)?;
            show_plan(context, &layouts, &plan);
            if plan.is_empty() {
                print_note("nothing to do");
                return Ok(());
            }
            if context.global.dry_run || !confirm(&context.global, "Change the layout?") {
                return Err(Failure::Findings);
            }
            mig::apply(&nvml, &layouts, &plan)?;
            print_note("done; see it with: slipway gpu mig ls");
            Ok(())
        }
        cli::Mig::Export { name } => {
            let config = mig::export(&mig::layout(&nvml(fixture)?)?, &name);
            let text = match context.global.output.format {
                Format::Json => serde_json::to_string_pretty(&config).unwrap_or_default() + "\n",
                _ => serde_saphyr::to_string(&config).unwrap_or_default(),
            };
            print_text(&text);
            Ok(())
        }
    }
}

fn ls(context: &Context, nvml: &Nvml) -> Result<(), Failure> {
    let layouts = mig::layout(nvml)?;
    let Some(first) = layouts.first() else {
        print_note("no GPU of this machine supports MIG");
        return Ok(());
    };
    match context.global.output.format {
        Format::Svg => print_text(&draw::slices(&first.geometry, &mig::maps(&layouts))),
        Format::Table => print_text(&draw::slices_text(&first.geometry, &mig::maps(&layouts))),
        format => print(format, &layouts, |layouts| {
            let mut table = Table::new(&["GPU", "MIG", "INSTANCES"]);
            for l in layouts {
                let list: Vec<String> = l.instances.iter().map(|i| format!("{}@{}", i.label(), i.at.start)).collect();
                table.row(vec![l.gpu.to_string(), if l.enabled { "on" } else { "off" }.into(), list.join(" ")]);
            }
            table
        }),
    }
    Ok(())
}

fn profiles(context: &Context, geometry: &Geometry) {
    print(context.global.output.format, geometry, |g| {
        let mut table = Table::new(&[
            "PROFILE",
            "ID",
            "COMPUTE",
            "MEMORY SLICES",
            "SMS",
            "MEMORY",
            "DEC/ENC/JPEG/OFA",
            "STARTS",
            "MAX",
        ]);
        for p in &g.profiles {
            let starts = p.starts.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
            let engines = [p.engines.decoders, p.engines.encoders, p.engines.jpeg, p.engines.ofa];
            table.row(vec![
                p.name.clone(),
                p.id.to_string(),
                format!("{}/{}", p.compute, g.compute),
                format!("{}/{}", p.size, g.memory),
                p.multiprocessors.to_string(),
                units::bytes(p.memory_mib << 20),
                engines.map(|n| n.to_string()).join("/"),
                starts,
                p.limit.to_string(),
            ]);
        }
        table
    });
}

fn plan(nvml: &Nvml, layouts: &[Layout], desired: &cli::Desired) -> Result<Plan, GpuError> {
    match (&desired.instances, &desired.config) {
        (Some(text), None) => {
            let gpus = match &desired.gpus {
                Some(text) => super::selected(nvml, text)?,
                None => layouts.iter().map(|l| l.gpu).collect(),
            };
            mig::plan(layouts, &mig::Desired::Together(&mig::parse(text)?, &gpus))
        }
        (None, Some(file)) => {
            let config = Config::parse(&read(file)?)?;
            let name = match (&desired.layout, config.configs.len()) {
                (Some(name), _) => name.clone(),
                (None, 1) => config.configs.keys().next().cloned().unwrap_or_default(),
                (None, _) => {
                    let names = config.configs.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                    return Err(GpuError::Invalid(format!("choose a layout of the file with --layout: {names}")));
                }
            };
            mig::plan(layouts, &mig::Desired::Rules(config.layout(&name)?))
        }
        _ => Err(GpuError::Invalid("give either instances (\"3x1g.10gb + 1x3g.40gb\") or a file with --config".into())),
    }
}

fn show_plan(context: &Context, layouts: &[Layout], plan: &Plan) {
    let list = |instances: &[Instance]| {
        instances.iter().map(|i| format!("{}@{}", i.label(), i.at.start)).collect::<Vec<_>>().join(" ")
    };
    if context.global.output.format == Format::Svg {
        let maps = planned_maps(plan);
        if let Some(first) = layouts.first() {
            print_text(&draw::slices(&first.geometry, &maps));
        }
        return;
    }
    print(context.global.output.format, plan, |plan| {
        let mut table = Table::new(&["GPU", "", "CHANGE"]);
        for c in &plan.changes {
            let mut add = |sign: &str, what: String| table.row(vec![c.gpu.to_string(), sign.into(), what]);
            if let Some(on) = c.mode {
                add("~", format!("MIG {}", if on { "on" } else { "off" }));
            }
            for (sign, instances) in [("=", &c.keep), ("-", &c.destroy), ("+", &c.create)] {
                if !instances.is_empty() {
                    add(sign, list(instances));
                }
            }
            if c.mode.is_none() && c.keep.is_empty() && c.destroy.is_empty() && c.create.is_empty() {
                add("=", "nothing".into());
            }
        }
        table
    });
    if context.global.output.format == Format::Table
        && let Some(first) = layouts.first()
    {
        let maps = planned_maps(plan);
        print_text(&draw::slices_text(&first.geometry, &maps));
    }
}

/// The instances of each GPU after the plan.
fn planned_maps(plan: &Plan) -> Vec<(String, Vec<Instance>)> {
    plan.changes.iter().map(|c| (format!("GPU {}", c.gpu), after(c))).collect()
}

fn after(change: &Change) -> Vec<Instance> {
    let mut all: Vec<Instance> = change.keep.iter().chain(&change.create).cloned().collect();
    all.sort_by_key(|i| i.at);
    all
}

/// Plans a placement on empty cards of a family.
fn plan_family(context: &Context, geometry: &Geometry, desired: &cli::Desired) -> Result<(), Failure> {
    let text = desired
        .instances
        .as_deref()
        .ok_or_else(|| GpuError::Invalid("give the instances: \"3x1g.10gb + 1x3g.40gb\"".into()))?;
    let requested = mig::parse(text)?;
    let count = match &desired.gpus {
        Some(text) => text.parse::<Selector>().map_err(GpuError::Invalid)?.count().ok_or_else(|| {
            GpuError::Invalid(
                "a card family has no UUIDs and names: give the number of GPUs as indices such as 0-3".into(),
            )
        })?,
        None => 1,
    };
    let empty = vec![mig::Used::default(); count];
    let mut shapes = mig::shapes(geometry, &requested)?;
    let instances = mig::profiles(&shapes);
    match mig::place(geometry, &empty, &instances)? {
        Placed::Yes(mut gpus) => {
            gpus.iter_mut().for_each(|gpu| mig::fill(gpu, &mut shapes));
            let maps: Vec<_> = gpus.into_iter().enumerate().map(|(i, list)| (format!("GPU {i}"), list)).collect();
            match context.global.output.format {
                Format::Svg => print_text(&draw::slices(geometry, &maps)),
                Format::Table | Format::Wide => print_text(&draw::slices_text(geometry, &maps)),
                format => print(format, &maps, |maps| {
                    let mut table = Table::new(&["GPU"]);
                    maps.iter().for_each(|(label, _)| table.row(vec![label.clone()]));
                    table
                }),
            }
            Ok(())
        }
        Placed::No => {
            let why = mig::explain(geometry, &empty, &instances)?;
            Err(GpuError::Impossible(format!(
                "{} cannot be placed on {count} of {}: {why}",
                mig::show(&requested),
                geometry.name
            ))
            .into())
        }
        Placed::Unknown => Err(GpuError::Impossible(
            "no placement was found within the search limit; plan fewer GPUs at a time".into(),
        )
        .into()),
    }
}

pub(super) fn share(
    context: &Context,
    fixture: Option<&str>,
    file: &Path,
    family: Option<String>,
) -> Result<(), Failure> {
    share_file(context, fixture, file, family, false)
}

/// The card to plan for: name, memory in MiB and MIG geometry.
fn card(fixture: Option<&str>, family: Option<String>) -> Result<(String, u64, Option<Geometry>), GpuError> {
    if let Some(name) = family {
        if let Some(geometry) = Geometry::family(&name) {
            // The largest profile has all of the card's memory except the driver's reserve.
            let mib = geometry.profiles.iter().map(|p| p.memory_mib).max().unwrap_or(0);
            return Ok((geometry.name.clone(), mib, Some(geometry)));
        }
        if sheet::find(&name).is_none() {
            let names = mig::families().collect::<Vec<_>>().join(", ");
            let message = format!("'{name}' is neither a MIG family ({names}) nor a card of `slipway gpu spec`");
            return Err(GpuError::Invalid(message));
        }
        let card = super::find_card(&name)?;
        return Ok((card.name.into(), card.memory_mib, Geometry::for_product(card.name, card.memory_mib)));
    }
    let nvml = nvml(fixture)?;
    let device = nvml.device(0)?;
    let (name, mib) = (device.name()?, device.memory()?.total >> 20);
    let geometry = Geometry::for_product(&name, mib);
    Ok((name, mib, geometry))
}

fn share_file(
    context: &Context,
    fixture: Option<&str>,
    file: &Path,
    family: Option<String>,
    mig_only: bool,
) -> Result<(), Failure> {
    let workloads = Workloads::parse(&read(file)?)?;
    let (name, mib, geometry) = card(fixture, family)?;
    let mut plan = share::plan(&name, mib, geometry.as_ref(), &workloads)?;
    if let (Format::Svg, Some(geometry), Some(packing)) = (context.global.output.format, &geometry, &plan.packing) {
        let maps: Vec<_> = packing
            .gpus
            .iter()
            .enumerate()
            .take(64)
            .map(|(i, gpu)| {
                let mut list: Vec<Instance> = gpu.iter().map(|(_, instance)| instance.clone()).collect();
                list.sort_by_key(|i| i.at);
                (format!("GPU {i}"), list)
            })
            .collect();
        print_text(&draw::slices(geometry, &maps));
        return Ok(());
    }
    if mig_only {
        plan.outcomes.retain(|o| o.strategy == share::Strategy::Mig);
    }
    print(context.global.output.format, &plan, |plan| {
        let mut table = Table::new(&[
            "STRATEGY",
            "GPUS",
            "LOWER BOUND",
            "MAX JOBS PER GPU",
            "UNUSED MEMORY",
            "SPEED AT WORST",
            "SPEED EXPECTED",
            "ISOLATION",
            "NOT POSSIBLE",
        ]);
        for o in &plan.outcomes {
            let or_dash = |text: String| if o.gpus == 0 { "-".into() } else { text };
            table.row(vec![
                o.strategy.name().into(),
                or_dash(o.gpus.to_string()),
                or_dash(o.lower_bound.to_string()),
                or_dash(o.most_jobs.to_string()),
                or_dash(format!("{:.1} GiB", o.memory_lost_gib)),
                or_dash(format!("{:.0} %", o.worst_share * 100.0)),
                or_dash(format!("{:.0} %", o.expected_share * 100.0)),
                o.isolation.into(),
                o.refused.clone().unwrap_or_default(),
            ]);
        }
        table
    });
    let chosen = plan
        .outcomes
        .iter()
        .find(|o| if mig_only { o.refused.is_none() } else { Some(o.strategy) == plan.recommended });
    if let (Some(o), Format::Table) = (chosen, context.global.output.format) {
        if !mig_only {
            print_text(&format!("\n{}: {}\n", o.strategy.name(), plan.reason));
        }
        print_text(&format!("\n# NVIDIA k8s-device-plugin\n{}", o.device_plugin));
        if let Some(text) = &o.mig_parted {
            print_text(&format!("\n# mig-parted\n{text}"));
        }
    } else if chosen.is_none() {
        print_note(&plan.reason);
        return Err(Failure::Findings);
    }
    Ok(())
}
