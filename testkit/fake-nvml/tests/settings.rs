//! Tests the settings of GPUs with the fake library: limits, rollback, undo, and which GPUs can be reset.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use slipway_fake_nvml::simulator;
use slipway_gpu::inventory::Inventory;
use slipway_gpu::nvml::Nvml;
use slipway_gpu::settings::{self, Key, Plan, Scope, Store, Value};
use slipway_gpu::topology::Topology;
use slipway_gpu::{GpuError, reset};

/// The fake simulates one machine per process, so tests run one at a time.
static MACHINE_LOCK: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

/// A name that no other test of this machine has.
fn unique(what: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("slipway-settings-{}-{number}-{what}", std::process::id()))
}

struct Machine {
    nvml: Nvml,
    store: Store,
    folder: PathBuf,
    _lock: parking_lot::MutexGuard<'static, ()>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn machine(fixture: &str) -> Machine {
    let lock = MACHINE_LOCK.lock();
    let folder = unique("folder");
    std::fs::create_dir_all(&folder).unwrap();
    let store = Store::new(folder.join("record.json"));
    Machine { nvml: Nvml::open_simulator(simulator(), fixture).unwrap(), store, folder, _lock: lock }
}

/// A machine like a fixture, with calls that fail.
fn failing(fixture: &str, call: &str, code: u32) -> Machine {
    let (_, text) = slipway_fake_nvml::FIXTURES.iter().find(|(name, _)| *name == fixture).unwrap();
    let file = unique("fixture.yaml");
    std::fs::write(&file, format!("{text}\ninject: {{{call}: {code}}}\n")).unwrap();
    let machine = machine(&file.display().to_string());
    std::fs::remove_file(file).unwrap();
    machine
}

impl Machine {
    fn plan(&self, entries: &str, scope: Scope) -> Result<Plan, GpuError> {
        let rules = settings::parse(&format!("version: v1\ngpuSettings: {entries}\n"))?;
        let record = self.store.read()?;
        let (cards, notes) = settings::cards(&self.nvml, &record)?;
        let mut plan = settings::plan(&cards, self.nvml.count()?, &rules, &record, scope)?;
        plan.notes.extend(notes);
        Ok(plan)
    }

    fn apply(&self, entries: &str) -> Result<Plan, GpuError> {
        let lock = self.store.lock()?;
        let plan = self.plan(entries, Scope::Everything)?;
        settings::apply(&self.nvml, &plan, &self.store, &lock)?;
        Ok(plan)
    }

    fn power(&self, gpu: u32) -> u32 {
        self.nvml.device(gpu).unwrap().requested_power_limit().unwrap()
    }

    fn record(&self) -> Option<String> {
        std::fs::read_to_string(self.store.path()).ok()
    }
}

fn changes(plan: &Plan) -> Vec<String> {
    let from = |c: &settings::Change| c.from.map_or("?".into(), |v| v.to_string());
    plan.changes.iter().map(|c| format!("{} {} {} -> {}", c.gpu, c.setting.path(), from(c), c.to)).collect()
}

#[test]
fn settings_are_applied_once_and_undone() {
    let machine = machine("a100x8");
    let entries = "[{gpus: 0-1, powerLimit: 80%, lockedClocks: {graphics: 1200-1410}, computeMode: exclusive-process}, {gpus: 1, powerLimit: 350W}]";
    let plan = machine.apply(entries).unwrap();
    assert_eq!(
        changes(&plan),
        [
            "0 computeMode default -> exclusive-process",
            "0 powerLimit 400 W -> 320 W",
            "0 lockedClocks.graphics ? -> 1200-1410 MHz",
            "1 computeMode default -> exclusive-process",
            "1 powerLimit 400 W -> 350 W",
            "1 lockedClocks.graphics ? -> 1200-1410 MHz",
        ]
    );
    assert_eq!((machine.power(0), machine.power(1), machine.power(2)), (320_000, 350_000, 400_000));
    assert_eq!(machine.nvml.device(0).unwrap().compute_mode().unwrap(), 3);
    assert_eq!(machine.nvml.device(0).unwrap().clock(slipway_gpu::nvml::Clock::Sm).unwrap(), 1200);
    assert!(machine.apply(entries).unwrap().changes.is_empty());
    // What a later file leaves out gets its earlier value again.
    let plan = machine.apply("[{gpus: 0, powerLimit: 320W}]").unwrap();
    assert_eq!(
        changes(&plan),
        [
            "0 computeMode exclusive-process -> default",
            "0 lockedClocks.graphics 1200-1410 MHz -> not locked",
            "1 computeMode exclusive-process -> default",
            "1 powerLimit 350 W -> 400 W",
            "1 lockedClocks.graphics 1200-1410 MHz -> not locked",
        ]
    );
    machine.apply("[]").unwrap();
    assert_eq!((machine.power(0), machine.power(1)), (400_000, 400_000));
    assert_eq!(machine.record(), None);
}

#[test]
fn single_settings_do_not_touch_the_others() {
    let machine = machine("a100x8");
    machine.apply("[{gpus: 0, powerLimit: 300W}]").unwrap();
    let plan = machine.plan("[{gpus: 1, powerLimit: 350W}]", Scope::Given).unwrap();
    assert_eq!(changes(&plan), ["1 powerLimit 400 W -> 350 W"]);
}

#[test]
fn settings_that_a_card_does_not_allow_are_rejected_before_any_change() {
    let machine = machine("h100x8");
    let error = |entries: &str| machine.apply(entries).unwrap_err().to_string();
    let message = error("[{gpus: 0, powerLimit: 300W}, {gpus: 1-2, powerLimit: 900W}]");
    assert!(
        message.contains("line 2: gpuSettings[1].powerLimit: GPU 1 (NVIDIA H100 80GB HBM3) allows 200 W to 700 W (default 700 W), not 900 W"),
        "{message}"
    );
    assert!(message.contains("GPU 2"), "{message}");
    assert_eq!(machine.power(0), 700_000);
    assert_eq!(machine.record(), None);
    assert!(error("[{gpus: 0, powerLimit: 10%}]").contains("not 70 W"));
    assert!(
        error("[{gpus: 0, lockedClocks: {graphics: 1200-2500}}]").contains("supports 210-1980 MHz, not 1200-2500 MHz")
    );
    assert!(error("[{gpus: 0, lockedClocks: {memory: 2619}}]").contains("--lock-memory-clocks-deferred"));
    assert!(
        error("[{gpus: 9, ecc: true}]").contains("gpuSettings[0].gpus: there is no GPU 9; there are 8 GPUs, 0 to 7")
    );
    let plan = machine.plan("[{gpus: A100, ecc: true}]", Scope::Everything).unwrap();
    assert!(plan.notes[0].contains("no GPU of this machine is 'A100'"), "{:?}", plan.notes);
    drop(machine);
    let machine = self::machine("t4");
    let message = machine.apply("[{gpus: all, lockedClocks: {memory: 5001}}]").unwrap_err().to_string();
    assert!(message.contains("GPU 0 (Tesla T4) cannot lock this clock"), "{message}");
}

#[test]
fn failed_change_undoes_those_before_it() {
    let machine = failing("a100x8", "nvmlDeviceSetGpuLockedClocks", 999);
    let error = machine
        .apply("[{gpus: 0-1, powerLimit: 300W, persistence: false, lockedClocks: {graphics: 1410}}]")
        .unwrap_err();
    let message = error.to_string();
    assert!(message.contains("GPU 0: lockedClocks.graphics 1410 MHz: nvmlDeviceSetGpuLockedClocks"), "{message}");
    assert!(message.contains("the change before it was undone"), "{message}");
    assert_eq!(machine.power(0), 400_000);
    assert_eq!(machine.record(), None);
}

#[test]
fn missing_permission_has_a_hint() {
    let machine = failing("a100x8", "nvmlDeviceSetPowerManagementLimit", 4);
    let message = machine.apply("[{gpus: 0, powerLimit: 300W}]").unwrap_err().to_string();
    assert!(message.contains("no permission") && message.contains("run it as root; nothing was changed"), "{message}");
}

#[test]
fn damaged_record_is_not_overwritten() {
    let machine = machine("a100x8");
    machine.apply("[{gpus: 0, powerLimit: 300W}]").unwrap();
    let before = machine.record().unwrap();
    assert!(before.contains("\"powerLimit\": 400000"), "{before}");
    std::fs::write(machine.store.path(), "{").unwrap();
    assert!(machine.apply("[]").unwrap_err().to_string().contains("not a record of GPU settings"));
    assert_eq!(machine.power(0), 300_000);
}

#[test]
fn volatile_settings_without_persistence_and_pending_ecc_are_noted() {
    let machine = machine("broken");
    let plan = machine.plan("[{gpus: all, powerLimit: 300W, ecc: false}]", Scope::Everything).unwrap();
    let notes = plan.notes.join("\n");
    assert!(notes.contains("GPU 0: persistence is off"), "{notes}");
    assert!(notes.contains("GPU 2: ECC is off after the next GPU reset or reboot"), "{notes}");
    assert!(notes.contains("GPU 3 has fallen off the bus; skipped"), "{notes}");
    // GPU 1 has the limit already.
    assert!(!changes(&plan).iter().any(|c| c.starts_with("1 powerLimit")), "{:?}", changes(&plan));
    let plan = machine.plan("[{gpus: 0, powerLimit: 300W, persistence: true}]", Scope::Everything).unwrap();
    assert_eq!(plan.changes[0].to, Value::Persistence(true));
    assert!(!plan.notes.iter().any(|n| n.contains("persistence")), "{:?}", plan.notes);
    let plan = machine.plan("[{gpus: 1, powerLimit: 350W, persistence: false}]", Scope::Everything).unwrap();
    assert_eq!(plan.changes.last().unwrap().setting, Key::Persistence);
}

#[test]
fn locks_are_set_again_after_a_restart_took_back_the_power_limit() {
    let machine = machine("a100x8");
    let entries = "[{gpus: 0, powerLimit: 300W, lockedClocks: {graphics: 1200}}]";
    machine.apply(entries).unwrap();
    let device = machine.nvml.device(0).unwrap();
    device.set_power_limit(400_000).unwrap();
    device.lock_graphics_clocks(None).unwrap();
    let plan = machine.apply(entries).unwrap();
    assert_eq!(changes(&plan), ["0 powerLimit 400 W -> 300 W", "0 lockedClocks.graphics ? -> 1200 MHz"]);
    assert_eq!(device.clock(slipway_gpu::nvml::Clock::Sm).unwrap(), 1200);
}

#[test]
fn two_programs_cannot_change_settings_at_the_same_time() {
    let machine = machine("t4");
    let _held = machine.store.lock().unwrap();
    assert!(matches!(machine.store.lock(), Err(GpuError::InUse(_))));
}

fn reset_plan(machine: &Machine, gpus: &[u32], fabric_manager: bool) -> Result<Vec<u32>, String> {
    let inventory = Inventory::collect(&machine.nvml).unwrap();
    let topology = Topology::collect(&machine.nvml, &inventory, Path::new("/nonexistent")).unwrap();
    let planned = reset::plan(&inventory, &topology, gpus, fabric_manager);
    planned.map(|targets| targets.iter().map(|t| t.gpu).collect()).map_err(|e| e.to_string())
}

#[test]
fn gpus_in_use_or_linked_to_others_are_not_reset() {
    let machine = machine("h100x8");
    assert!(reset_plan(&machine, &[0, 5], false).unwrap_err().contains("GPU 0 is in use by pid 70001"));
    // From Hopper on, GPUs behind NVSwitches are reset one by one, also without fabric manager.
    assert_eq!(reset_plan(&machine, &[5], false).unwrap(), [5]);
    drop(machine);
    let machine = self::machine("a100x8");
    assert_eq!(reset_plan(&machine, &[5], true).unwrap(), [5]);
    let error = reset_plan(&machine, &[5], false).unwrap_err();
    assert!(
        error.contains("fabric manager does not run") && error.contains("GPU 0-4,6-7 is missing; select --gpus 0-7"),
        "{error}"
    );
    assert_eq!(reset_plan(&machine, &[0, 1, 2, 3, 4, 5, 6, 7], false).unwrap().len(), 8);
    drop(machine);
    // A GPU that does not respond can be selected.
    assert_eq!(reset_plan(&self::machine("broken"), &[3], true).unwrap(), [3]);
}
