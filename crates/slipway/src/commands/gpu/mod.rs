//! `slipway gpu`: inspects, benchmarks and shares GPUs.

mod containers;
mod fit;
mod measure;
mod settings;
mod sharing;

use std::path::Path;

use slipway_core::gpu_settings::selector::{Identity, Selector};
use slipway_core::units;
use slipway_gpu::inventory::{Gpu, Inventory, Severity};
use slipway_gpu::nvml::Nvml;
use slipway_gpu::nvml::xid::{Effect, XIDS, Xid};
use slipway_gpu::sheet::{self, Precision};
use slipway_gpu::topology::Topology;
use slipway_gpu::{GpuError, draw, pci, stack, vendor};

use super::Context;
use crate::Failure;
use crate::cli::Format;
use crate::cli::gpu::{self as cli, Verb};
use crate::output::{Table, print, print_note, print_text, stdout_is_open};

/// Opens NVML of this machine or of a fixture. Simulated GPUs are announced on stderr.
pub(super) fn nvml(fixture: Option<&str>) -> Result<Nvml, GpuError> {
    if let Some(name) = fixture.filter(|name| vendor::is_amd(name)) {
        return Err(GpuError::Invalid(format!(
            "{name} simulates GPUs of AMD, which only `gpu ls`, `gpu show`, `gpu stack` and `top` support"
        )));
    }
    let nvml = Nvml::find(fixture)?;
    if nvml.is_simulated() {
        print_note(format_args!("SIMULATED: {}", fixture.unwrap_or("fake NVML")));
    }
    Ok(nvml)
}

pub(super) async fn run(context: &Context, args: cli::Gpu) -> Result<(), Failure> {
    let fixture = args.fixture.as_deref().filter(|f| !f.is_empty());
    match args.verb {
        Verb::Ls => ls(context, fixture),
        Verb::Show { index } => show(context, fixture, index),
        Verb::Topology => topology(context, fixture),
        Verb::Stack => print_stack(context, fixture),
        Verb::Watch { seconds } => watch(fixture, seconds),
        Verb::Xid { number } => {
            xids(context, number);
            Ok(())
        }
        Verb::Spec { card: Some(card), against_cpu: true } => measure::against_cpu(context, &card),
        Verb::Spec { card, .. } => spec(context, card),
        Verb::Bench(options) => measure::bench(context, fixture, options).await,
        Verb::Roofline(options) => measure::roofline(context, fixture, &options).await,
        Verb::Fit(options) => fit::fit(context, &options).await,
        Verb::Mig(verb) => sharing::mig(context, fixture, verb),
        Verb::Share(cli::Share::Plan { file, family }) => sharing::share(context, fixture, &file, family),
        Verb::Settings(verb) => settings::settings(context, fixture, verb),
        Verb::Reset(options) => settings::reset(context, fixture, options).await,
        Verb::Cdi(verb) => containers::cdi(context, fixture, verb),
        Verb::Container(verb) => containers::container(context, verb),
    }
}

/// The indices of the GPUs that a text such as `0-3,GPU-<uuid>,H100` selects.
fn selected(nvml: &Nvml, text: &str) -> Result<Vec<u32>, GpuError> {
    let selector: Selector = text.parse().map_err(GpuError::Invalid)?;
    let read = |index: u32| {
        let device = nvml.device(index).ok();
        let uuid = device.and_then(|d| d.uuid().ok()).unwrap_or_default();
        (index, uuid, device.and_then(|d| d.name().ok()).unwrap_or_default())
    };
    let gpus: Vec<(u32, String, String)> = (0..nvml.count()?).map(read).collect();
    let identities = gpus.iter().map(|(index, uuid, name)| Identity { index: *index, uuid, name });
    selector.indices(identities).map_err(GpuError::Invalid)
}

/// The value, or `-` if there is none.
fn or_dash<T: std::fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".into(), |v| v.to_string())
}

/// Used and total memory of a GPU, such as `41.2/79.6 GiB`.
fn memory(gpu: &Gpu) -> String {
    let gib = |b: u64| b as f64 / f64::from(1 << 30);
    match (gpu.memory_used, gpu.memory_total) {
        (Some(used), Some(total)) => format!("{:.1}/{:.1} GiB", gib(used), gib(total)),
        _ => "-".into(),
    }
}

/// Reads the GPUs of this machine, of whichever vendor, or of a fixture.
fn inventory(fixture: Option<&str>) -> Result<Inventory, GpuError> {
    let library = vendor::find(fixture)?;
    if library.is_simulated() {
        print_note(format_args!("SIMULATED: {}", fixture.unwrap_or("fake library")));
    }
    library.inventory()
}

fn ls(context: &Context, fixture: Option<&str>) -> Result<(), Failure> {
    let inventory = match inventory(fixture) {
        Ok(inventory) => inventory,
        Err(GpuError::NoNvml { .. }) if fixture.is_none() => return without_gpu(context),
        Err(e) => return Err(e.into()),
    };
    let wide = context.global.output.format == Format::Wide;
    print(context.global.output.format, &inventory, |inventory| {
        let mut head = vec!["GPU", "NAME", "MEMORY", "BUSY", "POWER", "TEMP", "MIG", "FINDINGS"];
        if wide {
            head.extend(["ARCHITECTURE", "CC", "CLOCK", "PCIE", "NVLINKS", "FABRIC", "BUS", "UUID"]);
        }
        let mut table = Table::new(&head);
        for g in &inventory.gpus {
            let mig =
                g.mig.as_ref().map(|m| if m.enabled { format!("{} instances", m.devices.len()) } else { "off".into() });
            let mut row = vec![
                g.index.to_string(),
                g.name.clone(),
                memory(g),
                g.utilization_percent.map_or("-".into(), |u| format!("{u} %")),
                g.power_watts.map_or("-".into(), |w| format!("{w:.0}/{:.0} W", g.power_limit_watts.unwrap_or(0.0))),
                g.temperature_celsius.map_or("-".into(), |t| format!("{t} °C")),
                or_dash(mig),
                findings(g),
            ];
            if wide {
                let links = g.nvlinks.iter().filter(|l| l.active).count();
                row.extend([
                    g.architecture.clone(),
                    or_dash(g.compute_capability.clone()),
                    g.clock_sm_mhz.map_or("-".into(), |c| format!("{c}/{} MHz", g.clock_sm_max_mhz.unwrap_or(0))),
                    g.pcie.as_ref().map_or("-".into(), |p| format!("gen{} x{}", p.generation_max, p.width)),
                    if g.nvlinks.is_empty() { "-".into() } else { format!("{links}/{}", g.nvlinks.len()) },
                    g.fabric.as_ref().map_or("-".into(), |f| f.state.to_string()),
                    g.bus_id.clone(),
                    g.uuid.clone(),
                ]);
            }
            table.row(row);
        }
        table
    });
    Ok(())
}

/// A summary of a GPU's findings, such as `1 error, 2 warnings`.
fn findings(gpu: &Gpu) -> String {
    let count = |s| gpu.findings.iter().filter(|f| f.severity == s).count();
    let words = [(Severity::Error, "error"), (Severity::Warning, "warning"), (Severity::Note, "note")];
    let plural = |n: usize, word: &str| if n == 1 { format!("1 {word}") } else { format!("{n} {word}s") };
    let parts: Vec<String> = words.iter().filter(|(s, _)| count(*s) > 0).map(|(s, w)| plural(count(*s), w)).collect();
    if parts.is_empty() { "none".into() } else { parts.join(", ") }
}

/// Shows the CPU, the memory and the PCI devices of a machine without a usable GPU.
fn without_gpu(context: &Context) -> Result<(), Failure> {
    use slipway_gpu::bench::cpu;
    print_note(
        "this machine has no usable GPU of NVIDIA or AMD (`slipway gpu stack` shows why; `--fixture h100x8` simulates GPUs)",
    );
    let devices = pci::scan(Path::new("/sys"));
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 =
        memory.lines().find_map(|l| l.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    let machine = serde_json::json!({
        "gpus": [],
        "processor": cpu::model(),
        "threads": cpu::threads(),
        "vectors": cpu::Vectors::detect().name(),
        "memory_bytes": kib * 1024,
        "pci": devices,
    });
    print(context.global.output.format, &machine, |m| {
        let mut table = Table::new(&["COMPONENT", "FOUND"]);
        let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
        table.row(vec![
            "processor".into(),
            format!("{}, {} threads, {}", text(&m["processor"]), m["threads"], text(&m["vectors"])),
        ]);
        table.row(vec!["memory".into(), units::bytes(kib * 1024)]);
        for d in &devices {
            table.row(vec![
                format!("PCI {}", d.address),
                d.name.clone().unwrap_or_else(|| format!("{:04x}:{:04x}", d.vendor, d.device)),
            ]);
        }
        table
    });
    Ok(())
}

fn show(context: &Context, fixture: Option<&str>, index: Option<u32>) -> Result<(), Failure> {
    let mut inventory = inventory(fixture)?;
    if let Some(index) = index {
        let count = inventory.gpus.len();
        inventory.gpus.retain(|g| g.index == index);
        if inventory.gpus.is_empty() {
            return Err(GpuError::Invalid(format!("there is no GPU {index}; there are {count}")).into());
        }
    }
    print(context.global.output.format, &inventory, |inventory| {
        let mut table = Table::new(&["GPU", "PROPERTY", "VALUE"]);
        for g in &inventory.gpus {
            let mut add = |what: &str, value: Option<String>| {
                if let Some(value) = value {
                    table.row(vec![g.index.to_string(), what.into(), value]);
                }
            };
            details(g, &mut add);
        }
        table
    });
    Ok(())
}

/// Passes the name and the value of every property of a GPU to `add`.
fn details(g: &Gpu, add: &mut dyn FnMut(&str, Option<String>)) {
    let watts = |w: Option<f64>| w.map(|w| format!("{w:.0} W"));
    add("name", Some(g.name.clone()));
    add("uuid", Some(g.uuid.clone()).filter(|u| !u.is_empty()));
    add("serial", g.serial.clone());
    add("bus", Some(g.bus_id.clone()).filter(|u| !u.is_empty()));
    add(
        "architecture",
        Some(g.compute_capability.as_ref().map_or_else(
            || g.architecture.clone(),
            |capability| format!("{}, compute capability {capability}", g.architecture),
        )),
    );
    add("cores", g.cores.map(|c| c.to_string()));
    add("memory", Some(memory(g)).filter(|m| m != "-"));
    add("memory bus", g.bus_width_bits.map(|b| format!("{b} bit")));
    let clocks = |now: Option<u32>, max: Option<u32>| now.map(|n| format!("{n} of {} MHz", or_dash(max)));
    add("clock, multiprocessors", clocks(g.clock_sm_mhz, g.clock_sm_max_mhz));
    add("clock, memory", clocks(g.clock_memory_mhz, g.clock_memory_max_mhz));
    add("busy", g.utilization_percent.map(|u| format!("{u} % (memory {} %)", or_dash(g.memory_utilization_percent))));
    add("power", watts(g.power_watts).map(|now| format!("{now} of {}", or_dash(watts(g.power_limit_watts)))));
    add("energy", g.energy_joules.map(|j| format!("{:.2} kWh since the driver was loaded", j / 3.6e6)));
    let limits = g.temperature_slowdown_celsius.map_or(String::new(), |t| format!(", slows down at {t} °C"));
    add("temperature", g.temperature_celsius.map(|t| format!("{t} °C{limits}")));
    add("fan", g.fan_percent.map(|f| format!("{f} %")));
    add("clocks limited by", Some(g.throttle.join(", ")).filter(|t| !t.is_empty()));
    add("performance state", g.performance_state.map(|p| format!("P{p}")));
    let ecc = |e: &slipway_gpu::inventory::Ecc| {
        let state = if e.enabled { "on" } else { "off" };
        format!("{state}, {} corrected, {} uncorrected, {} rows remapped", e.corrected, e.uncorrected, e.rows_remapped)
    };
    add("ECC", g.ecc.as_ref().map(ecc));
    add(
        "PCIe",
        g.pcie.as_ref().map(|p| {
            format!("gen {} x{} now, gen {} x{} at most", p.generation, p.width, p.generation_max, p.width_max)
        }),
    );
    let active = g.nvlinks.iter().filter(|l| l.active).count();
    add("NVLinks", (!g.nvlinks.is_empty()).then(|| format!("{active} of {} up", g.nvlinks.len())));
    let fabric = |f: &slipway_gpu::nvml::Fabric| match f.clique_id() {
        Some(clique) => format!("{}, clique {clique}", f.state),
        None => f.state.to_string(),
    };
    add("NVLink fabric", g.fabric.as_ref().map(fabric));
    add("persistence", g.persistence.map(|p| if p { "on" } else { "off" }.into()));
    add("compute mode", g.compute_mode.map(str::to_owned));
    add("MIG", g.mig.as_ref().map(|m| if m.enabled { "on" } else { "off" }.into()));
    for device in g.mig.iter().flat_map(|m| &m.devices) {
        let about = format!(
            "slices {}+{}, {} multiprocessors, {} MiB, {}",
            device.start, device.size, device.attributes.multiprocessors, device.attributes.memory_mib, device.uuid
        );
        add("instance", Some(format!("{} {about}", device.profile)));
    }
    for p in &g.processes {
        let pod = p.owner.pod.as_ref().map(|pod| format!(", pod {pod}")).unwrap_or_default();
        let busy = p.sm_percent.map(|s| format!(", {s} % busy")).unwrap_or_default();
        let user = if p.owner.user.is_empty() { String::new() } else { format!(", user {}", p.owner.user) };
        add(
            "process",
            Some(format!(
                "{} {}{user}, {}{busy}{pod}",
                p.pid,
                p.owner.command,
                p.memory_bytes.map_or("-".into(), units::bytes)
            )),
        );
    }
    for f in &g.findings {
        add(&format!("{:?}", f.severity).to_lowercase(), Some(format!("{}: {}", f.what, f.remedy)));
    }
}

fn topology(context: &Context, fixture: Option<&str>) -> Result<(), Failure> {
    let nvml = nvml(fixture)?;
    let inventory = Inventory::collect(&nvml)?;
    let found = Topology::collect(&nvml, &inventory, Path::new("/sys"))?;
    if context.global.output.format == Format::Svg {
        print_text(&draw::topology(&found));
        return Ok(());
    }
    print(context.global.output.format, &found, |t| {
        let names: Vec<String> = (0..t.gpus.len()).map(|i| format!("GPU{i}")).collect();
        let mut table =
            Table::with_columns([vec![String::new()], names.clone(), vec!["CPUS".into(), "NUMA".into()]].concat());
        for (i, row) in t.links.iter().enumerate() {
            let links = row.iter().map(|l| l.short()).collect();
            table.row([vec![names[i].clone()], links, vec![t.cpus[i].clone(), or_dash(t.numa[i])]].concat());
        }
        for (nic, links) in &t.nics {
            table.row(
                [vec![nic.clone()], links.iter().map(|l| l.short()).collect(), vec![String::new(), String::new()]]
                    .concat(),
            );
        }
        table
    });
    if context.global.output.format == Format::Table {
        let mut kinds: Vec<_> = found.links.iter().flatten().copied().collect();
        kinds.sort_unstable();
        kinds.dedup();
        print_note(kinds.iter().map(|l| format!("{} {}", l.short(), l.description())).collect::<Vec<_>>().join(", "));
    }
    Ok(())
}

fn print_stack(context: &Context, fixture: Option<&str>) -> Result<(), Failure> {
    let inventory = vendor::find(fixture).and_then(|library| library.inventory());
    let layers = stack::layers(Path::new("/"), &inventory);
    let missing = layers.iter().filter(|l| l.ok == Some(false)).count();
    print(context.global.output.format, &layers, |layers| {
        let mut table = Table::new(&["LAYER", "STATE", "FOUND", "REMEDY"]);
        for l in layers {
            let state = match l.ok {
                Some(true) => "ok",
                Some(false) => "MISSING",
                None => "-",
            };
            table.row(vec![l.name.into(), state.into(), l.found.clone(), l.remedy.clone()]);
        }
        table
    });
    if missing > 0 { Err(Failure::Findings) } else { Ok(()) }
}

fn watch(fixture: Option<&str>, seconds: u64) -> Result<(), Failure> {
    let nvml = nvml(fixture)?;
    let started = std::time::Instant::now();
    let devices: Vec<_> = (0..nvml.count().map_err(GpuError::from)?).filter_map(|i| nvml.device(i).ok()).collect();
    print_note(format_args!("watching {} GPUs", devices.len()));
    let xids = nvml.watch(&devices).map_err(GpuError::from)?;
    let mut errors = false;
    while (seconds == 0 || started.elapsed().as_secs() < seconds) && stdout_is_open() {
        if let Some(event) = xids.wait(500).map_err(GpuError::from)? {
            let xid = Xid::new(event.data);
            print_text(&format!(
                "{} XID {}: {} ({})\n",
                event.bus_id,
                xid.number,
                xid.meaning,
                xid.action.instruction()
            ));
            errors |= !xid.is_harmless();
        }
    }
    if errors { Err(Failure::Findings) } else { Ok(()) }
}

/// Lists the known XIDs, or explains one.
fn xids(context: &Context, number: Option<u64>) {
    let listed: Vec<Xid> = number.map_or_else(|| XIDS.to_vec(), |n| vec![Xid::new(n)]);
    print(context.global.output.format, &listed, |listed| {
        let mut table = Table::new(&["XID", "MEANING", "ENDS", "WHAT TO DO"]);
        for x in listed {
            let ends = match x.effect {
                Effect::Nothing => "nothing",
                Effect::Application => "application",
                Effect::Gpu => "GPU",
                Effect::Node => "node",
            };
            table.row(vec![x.number.to_string(), x.meaning.into(), ends.into(), x.action.instruction().into()]);
        }
        table
    });
}

/// The data sheet of a card. A name that several cards share gives the most common one; the others are named on stderr.
fn find_card(name: &str) -> Result<sheet::Card, GpuError> {
    let mut found = sheet::candidates(name).into_iter();
    let card = found.next().ok_or_else(|| {
        GpuError::Invalid(format!("there is no data sheet for '{name}'; `slipway gpu spec` lists the known cards"))
    })?;
    let others: Vec<&str> = found.map(|c| c.name).collect();
    if !others.is_empty() {
        print_note(format_args!("'{name}' is taken as {}; it can also mean {}", card.name, others.join(", ")));
    }
    Ok(card)
}

fn spec(context: &Context, card: Option<String>) -> Result<(), Failure> {
    let Some(name) = card else {
        let cards = sheet::cards();
        print(context.global.output.format, &cards, |cards| {
            let mut table =
                Table::new(&["CARD", "ARCHITECTURE", "SMS", "MEMORY", "GB/S", "FP32", "BF16", "FP8", "FP4", "TDP"]);
            for c in cards {
                let peak = |p| c.peak(p).map_or("-".into(), |p| format!("{:.0}", p.tera));
                table.row(vec![
                    c.name.into(),
                    c.architecture.into(),
                    c.multiprocessors.to_string(),
                    units::bytes(c.memory_mib << 20),
                    format!("{:.0}", c.bandwidth()),
                    c.peak(Precision::Fp32).map_or("-".into(), |p| format!("{:.1}", p.tera)),
                    peak(Precision::Bf16),
                    peak(Precision::Fp8),
                    peak(Precision::Fp4),
                    format!("{} W", c.power_watts),
                ]);
            }
            table
        });
        return Ok(());
    };
    let card = find_card(&name)?;
    let peaks: Vec<_> = Precision::ALL.iter().filter_map(|p| card.peak(*p)).collect();
    print(
        context.global.output.format,
        &serde_json::json!({ "card": card, "peaks": peaks, "bandwidth": card.bandwidth() }),
        |_| {
            let mut table = Table::new(&["PROPERTY", "VALUE"]);
            table.row(vec![
                "card".into(),
                format!("{}, {}, compute capability {}", card.name, card.architecture, card.compute_capability),
            ]);
            for p in &peaks {
                table.row(vec![p.precision.to_string(), p.formula.clone()]);
            }
            table.row(vec![
                "memory".into(),
                format!("{}, {}", units::bytes(card.memory_mib << 20), card.bandwidth_formula()),
            ]);
            if let Some(roof) = slipway_gpu::roofline::Roofline::from_card(&card).ceiling(Precision::Bf16) {
                table.row(vec![
                    "ridge".into(),
                    format!("{:.0} {} operations per byte", roof.tera * 1000.0 / card.bandwidth(), roof.precision),
                ]);
            }
            table.row(vec!["source".into(), card.source.into()]);
            table
        },
    );
    Ok(())
}
