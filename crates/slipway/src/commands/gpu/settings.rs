//! `slipway gpu settings` and `slipway gpu reset`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use slipway_core::gpu_settings::selector::Selector;
use slipway_core::home::Home;
use slipway_gpu::inventory::Inventory;
use slipway_gpu::nvml::Nvml;
use slipway_gpu::settings::file::Desired;
use slipway_gpu::settings::record::DEFAULT_PATH;
use slipway_gpu::settings::{self, Card, Key, Plan, Record, Rule, Scope, Store, Value};
use slipway_gpu::topology::Topology;
use slipway_gpu::{GpuError, reset, stack};

use super::sharing::read;
use super::{Context, nvml};
use crate::Failure;
use crate::cli::gpu as cli;
use crate::output::{Table, confirm, print, print_note};

/// Timeout for the node agent to close the GPUs.
const AGENT_TIMEOUT: Duration = Duration::from_secs(30);

/// The record of this machine. Simulated GPUs have their own, so that an exercise does not mix with real earlier values.
fn store(context: &Context, nvml: &Nvml, record: cli::RecordFile) -> Store {
    let default = || {
        if nvml.is_simulated() {
            Home::at(context.config.get("home").unwrap_or_default()).root().join("gpu-settings.json")
        } else {
            PathBuf::from(DEFAULT_PATH)
        }
    };
    Store::new(record.record.unwrap_or_else(default))
}

/// The desired settings, and what they cover.
fn rules(desired: cli::DesiredSettings) -> Result<(Vec<Rule>, Scope), GpuError> {
    if let Some(file) = &desired.file {
        return Ok((settings::parse(&read(file)?)?, Scope::Everything));
    }
    let on = |switch: cli::Switch| switch == cli::Switch::On;
    let given = [
        ("--power-limit", desired.power_limit.map(Desired::Power)),
        ("--lock-gpu-clocks", desired.lock_gpu_clocks.map(|lock| Desired::Value(Value::GraphicsClocks(lock.0)))),
        ("--lock-memory-clocks", desired.lock_memory_clocks.map(|lock| Desired::Value(Value::MemoryClocks(lock.0)))),
        ("--persistence-mode", desired.persistence_mode.map(|s| Desired::Value(Value::Persistence(on(s))))),
        ("--ecc", desired.ecc.map(|s| Desired::Value(Value::Ecc(on(s))))),
        ("--compute-mode", desired.compute_mode.map(|mode| Desired::Value(Value::ComputeMode(mode)))),
    ];
    let settings: Vec<_> = given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    if settings.is_empty() {
        return Err(GpuError::Invalid("give a file with settings, or an option such as --power-limit 350W".into()));
    }
    let gpus = selector(desired.gpus.as_deref())?;
    Ok((vec![Rule { place: "--gpus".into(), gpus, settings }], Scope::Given))
}

fn selector(text: Option<&str>) -> Result<Selector, GpuError> {
    text.map_or_else(|| Ok(Selector::all()), |text| text.parse().map_err(GpuError::Invalid))
}

pub(super) fn settings(context: &Context, fixture: Option<&str>, verb: cli::GpuSettings) -> Result<(), Failure> {
    match verb {
        cli::GpuSettings::Show { record } => {
            let nvml = nvml(fixture)?;
            let record = store(context, &nvml, record).read()?;
            let (cards, notes) = settings::cards(&nvml, &record)?;
            show(context, &cards, &record);
            notes.iter().for_each(print_note);
            Ok(())
        }
        cli::GpuSettings::Plan { desired, record } => {
            let (rules, scope) = rules(desired)?;
            let nvml = nvml(fixture)?;
            let plan = plan(&nvml, &store(context, &nvml, record), &rules, scope)?;
            show_plan(context, &plan);
            if plan.changes.is_empty() { Ok(()) } else { Err(Failure::Findings) }
        }
        cli::GpuSettings::Apply { desired, record } => {
            let (rules, scope) = rules(desired)?;
            let nvml = nvml(fixture)?;
            let store = store(context, &nvml, record);
            change(context, &nvml, &store, || plan(&nvml, &store, &rules, scope))
        }
        cli::GpuSettings::Undo { gpus, record } => {
            let nvml = nvml(fixture)?;
            let store = store(context, &nvml, record);
            let selected = match &gpus {
                Some(text) => Some(super::selected(&nvml, text)?),
                None => None,
            };
            change(context, &nvml, &store, || {
                let mut plan = plan(&nvml, &store, &[], Scope::Everything)?;
                if let Some(selected) = &selected {
                    let uuid = |index: &u32| nvml.device(*index).and_then(|d| d.uuid()).ok();
                    let uuids: Vec<String> = selected.iter().filter_map(uuid).collect();
                    plan.changes.retain(|c| uuids.contains(&c.uuid));
                    plan.settled.retain(|(found, _)| uuids.contains(found));
                }
                Ok(plan)
            })
        }
    }
}

fn plan(nvml: &Nvml, store: &Store, rules: &[Rule], scope: Scope) -> Result<Plan, GpuError> {
    let record = store.read()?;
    let (cards, mut notes) = settings::cards(nvml, &record)?;
    let mut plan = settings::plan(&cards, nvml.count()?, rules, &record, scope)?;
    plan.notes.append(&mut notes);
    Ok(plan)
}

/// Shows a plan, and applies it after a confirmation.
fn change(
    context: &Context,
    nvml: &Nvml,
    store: &Store,
    plan: impl FnOnce() -> Result<Plan, GpuError>,
) -> Result<(), Failure> {
    let dry_run = context.global.dry_run;
    let lock = if dry_run { None } else { Some(store.lock()?) };
    let plan = plan()?;
    show_plan(context, &plan);
    if plan.changes.is_empty() {
        if let Some(lock) = lock {
            settings::apply(nvml, &plan, store, &lock)?;
        }
        print_note("nothing to do");
        return Ok(());
    }
    let Some(lock) = lock.filter(|_| confirm(&context.global, "Change the settings?")) else {
        return Err(Failure::Findings);
    };
    settings::apply(nvml, &plan, store, &lock)?;
    print_note("done; see them with: slipway gpu settings show");
    Ok(())
}

fn show_plan(context: &Context, plan: &Plan) {
    print(context.global.output.format, plan, |plan| {
        let mut table = Table::new(&["GPU", "", "SETTING", "NOW", "PLANNED"]);
        for c in &plan.changes {
            let (sign, why) = if c.restores { ("-", " (as before slipway)") } else { ("~", "") };
            table.row(vec![
                c.gpu.to_string(),
                sign.into(),
                c.setting.path().into(),
                c.from.map_or("unknown".into(), |v| v.to_string()),
                format!("{}{why}", c.to),
            ]);
        }
        table
    });
    plan.notes.iter().for_each(print_note);
}

fn show(context: &Context, cards: &[Card], record: &Record) {
    let watts = |milliwatts: u32| Value::PowerLimit(milliwatts).to_string();
    print(context.global.output.format, &cards, |cards| {
        let mut table = Table::new(&["GPU", "NAME", "SETTING", "NOW", "ALLOWED", "BEFORE SLIPWAY"]);
        for card in *cards {
            for (key, value) in &card.settings {
                let allowed = match (key, card.power) {
                    (Key::PowerLimit, Some(p)) => {
                        format!("{} to {} (default {})", watts(p.min), watts(p.max), watts(p.default))
                    }
                    (Key::GraphicsClocks, _) => super::or_dash(card.graphics),
                    (Key::MemoryClocks, _) => super::or_dash(card.memory),
                    (Key::Persistence | Key::Ecc, _) => "on, off".into(),
                    (Key::ComputeMode, _) => "default, exclusive-process, prohibited".into(),
                    (Key::PowerLimit, None) => "-".into(),
                };
                let now = match (value, card.ecc_active) {
                    (Some(Value::Ecc(after)), Some(now)) if *after != now => {
                        format!("{}, {} after the next reset", Value::Ecc(now), Value::Ecc(*after))
                    }
                    (Some(value), _) => value.to_string(),
                    (None, _) => "not set by slipway".into(),
                };
                let before = record.entry(&card.uuid, *key).map(|e| e.before.to_string());
                table.row(vec![
                    card.gpu.to_string(),
                    card.name.clone(),
                    key.path().into(),
                    now,
                    allowed,
                    super::or_dash(before),
                ]);
            }
        }
        table
    });
}

pub(super) async fn reset(context: &Context, fixture: Option<&str>, args: cli::Reset) -> Result<(), Failure> {
    let nvml = nvml(fixture)?;
    let inventory = Inventory::collect(&nvml)?;
    let topology = Topology::collect(&nvml, &inventory, Path::new("/sys"))?;
    let selected = super::selected(&nvml, &args.gpus)?;
    let targets = reset::plan(&inventory, &topology, &selected, stack::fabric_manager_runs(Path::new("/")))?;
    refuse_held_by_pods(&args.kubelet_dir, &inventory, &selected).await?;
    print(context.global.output.format, &targets, |targets| {
        let mut table = Table::new(&["GPU", "", "NAME", "BUS"]);
        for t in targets {
            table.row(vec![t.gpu.to_string(), "~".into(), t.name.clone(), t.bus_id.clone()]);
        }
        table
    });
    for target in targets.iter().filter(|t| t.mig_devices > 0) {
        print_note(format_args!("GPU {}: the reset removes its {} MIG devices", target.gpu, target.mig_devices));
    }
    if context.global.dry_run || !confirm(&context.global, "Reset these GPUs?") {
        return Err(Failure::Findings);
    }
    let simulated = nvml.is_simulated();
    let store = store(context, &nvml, args.record);
    drop(nvml);
    if simulated {
        print_note(format_args!("simulated GPUs are not reset: nvidia-smi {}", reset::arguments(&targets).join(" ")));
        return Ok(());
    }
    let _lock = store.lock()?;
    // Held until the reset is over; the agent reopens the GPUs when it is released, even if this process is killed.
    let _paused = slipway_node::pause::request(&args.agent_dir)?;
    let deadline = Instant::now() + AGENT_TIMEOUT;
    loop {
        let clients = reset::clients(Path::new("/"), &targets);
        if clients.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            return Err(GpuError::InUse(format!("the GPUs are held open by {}", clients.join(", "))).into());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tokio::task::block_in_place(|| reset::run(Path::new("nvidia-smi"), &targets))?;
    let mut record = store.read()?;
    record.forget_locks();
    store.write(&record)?;
    print_note("done; the GPUs have their initial settings: apply yours again with: slipway gpu settings apply");
    Ok(())
}

/// Fails if the kubelet has given one of the GPUs, or a MIG device of it, to a pod; also to one that does not compute at the moment.
async fn refuse_held_by_pods(kubelet: &Path, inventory: &Inventory, selected: &[u32]) -> Result<(), Failure> {
    let socket = kubelet.join("pod-resources/kubelet.sock");
    if inventory.simulated || !socket.exists() {
        return Ok(());
    }
    let gpus = inventory.gpus.iter().filter(|g| selected.contains(&g.index));
    let devices: Vec<&str> = gpus
        .flat_map(|g| g.mig.iter().flat_map(|m| &m.devices).map(|d| d.uuid.as_str()).chain([g.uuid.as_str()]))
        .collect();
    let state = slipway_node::driver::State::Missing("it is about to be reset".into());
    let held = slipway_node::holders::list_holders(&socket, &state, slipway_node::dra::DRIVER).await?;
    let pods: std::collections::BTreeSet<String> = held
        .iter()
        .filter(|h| devices.contains(&h.device.as_str()))
        .map(|h| format!("{}/{}", h.namespace, h.pod))
        .collect();
    if pods.is_empty() {
        return Ok(());
    }
    let pods: Vec<String> = pods.into_iter().collect();
    Err(GpuError::InUse(format!("the GPUs are held by the pods {}", pods.join(", "))).into())
}
