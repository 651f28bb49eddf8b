//! Settings of simulated GPUs: plan, apply and undo, a `kill -9` between two changes, and the node agent after the driver was loaded again.

use serde_json::Value;

use crate::support::{CommandOutput, Running, Sandbox, wait_until};

/// Eight simulated A100 whose state and behaviour are files.
struct Machine(Sandbox);

impl Machine {
    fn new() -> Self {
        let mut sandbox = Sandbox::new();
        let path = |name: &str| sandbox.folder().join(name).display().to_string();
        let (state, control) = (path("state.json"), path("control"));
        sandbox.set("SLIPWAY_FAKE_NVML_STATE", &state);
        sandbox.set("SLIPWAY_FAKE_NVML_CONTROL", &control);
        sandbox.set("SLIPWAY_GPU_FIXTURE", "a100x8");
        Self(sandbox)
    }

    fn run(&self, words: &[&str]) -> CommandOutput {
        self.0.run(&[&["gpu", "settings"], words].concat())
    }

    /// A setting of the simulated driver.
    fn driver(&self, gpu: usize, setting: &str) -> Value {
        let text = std::fs::read_to_string(self.0.folder().join("state.json")).unwrap_or_default();
        let state: Value = serde_json::from_str(&text).unwrap_or_default();
        state[gpu]["settings"][setting].clone()
    }

    fn record(&self) -> Option<String> {
        std::fs::read_to_string(self.0.home().join("gpu-settings.json")).ok()
    }
}

#[test]
fn settings_are_planned_applied_and_undone() {
    let machine = Machine::new();
    let file =
        "version: v1\ngpuSettings:\n- {gpus: all, powerLimit: 80%}\n- {gpus: 0, lockedClocks: {graphics: 1200-1410}}\n";
    machine.0.write("settings.yaml", file);
    let planned = machine.run(&["plan", "settings.yaml"]).with_code(3).stdout;
    assert!(planned.contains("SIMULATED") || planned.contains("400 W"), "{planned}");
    assert!(planned.contains("320 W") && planned.contains("1200-1410 MHz"), "{planned}");
    machine.run(&["apply", "settings.yaml"]).with_code(3);
    machine.run(&["apply", "settings.yaml", "--dry-run", "--yes"]).with_code(3);
    assert_eq!((machine.driver(0, "power_limit"), machine.record()), (Value::Null, None));
    machine.run(&["apply", "settings.yaml", "--yes"]).with_code(0);
    assert_eq!((machine.driver(0, "power_limit"), machine.driver(7, "power_limit")), (320_000.into(), 320_000.into()));
    machine.run(&["plan", "settings.yaml"]).with_code(0);
    // Options change only what they name.
    machine
        .run(&["apply", "--gpus", "1", "--power-limit", "300W", "--compute-mode", "prohibited", "--yes"])
        .with_code(0);
    assert_eq!((machine.driver(1, "power_limit"), machine.driver(2, "power_limit")), (300_000.into(), 320_000.into()));
    let shown = machine.run(&["show"]).with_code(0).stdout;
    assert!(shown.contains("100 W to 400 W (default 400 W)") && shown.contains("prohibited"), "{shown}");
    let cards = machine.run(&["show", "-o", "json"]).with_code(0).json();
    assert_eq!(cards[1]["settings"]["powerLimit"]["powerLimit"], 300_000);
    // The file is the desired state, so it takes back what the options did.
    let planned = machine.run(&["plan", "settings.yaml", "-o", "json"]).with_code(3).json();
    let changes: Vec<_> = planned["changes"].as_array().unwrap().iter().map(|c| c["to"].as_str().unwrap()).collect();
    assert_eq!(changes, ["default", "320 W"]);
    machine.run(&["undo", "--gpus", "0-1", "--yes"]).with_code(0);
    assert_eq!((machine.driver(0, "power_limit"), machine.driver(2, "power_limit")), (400_000.into(), 320_000.into()));
    machine.run(&["undo", "--yes"]).with_code(0);
    assert_eq!((machine.driver(2, "power_limit"), machine.record()), (400_000.into(), None));
    assert_eq!(machine.driver(0, "graphics_clocks"), Value::Null);
    machine.run(&["undo", "--yes"]).with_code(0);
}

#[test]
fn invalid_settings_change_nothing() {
    let machine = Machine::new();
    let refused = machine.run(&["apply", "--power-limit", "900W", "--yes"]).with_code(1);
    assert!(
        refused.message().contains("--power-limit: GPU 0 (NVIDIA A100-SXM4-80GB) allows 100 W to 400 W"),
        "{refused:?}"
    );
    machine.run(&["apply", "--power-limit", "fast", "--yes"]).with_code(2);
    machine.run(&["apply", "--yes"]).with_code(1);
    machine.run(&["apply", "x.yaml", "--power-limit", "300W"]).with_code(2);
    let refused = machine.run(&["plan", "--gpus", "8", "--ecc", "on"]).with_code(1);
    assert!(refused.message().contains("there is no GPU 8; there are 8 GPUs, 0 to 7"), "{refused:?}");
    assert_eq!(machine.record(), None);
}

#[test]
fn kill_9_between_two_changes_can_be_undone() {
    let machine = Machine::new();
    machine.0.write("control", "hang nvmlDeviceSetGpuLockedClocks\n");
    let words =
        ["gpu", "settings", "apply", "--gpus", "0", "--power-limit", "300W", "--lock-gpu-clocks", "1410", "--yes"];
    let killed = Running::start(machine.0.command(&words));
    wait_until("the second change is recorded", || machine.record().filter(|r| r.contains("graphicsClocks")));
    drop(killed); // kills the process
    assert_eq!(machine.driver(0, "power_limit"), 300_000);
    std::fs::remove_file(machine.0.folder().join("control")).unwrap();
    let planned = machine.run(&["undo", "--dry-run"]).with_code(3).stdout;
    assert!(planned.contains("400 W (as before slipway)") && planned.contains("not locked"), "{planned}");
    machine.run(&["undo", "--yes"]).with_code(0);
    assert_eq!((machine.driver(0, "power_limit"), machine.record()), (400_000.into(), None));
}

#[test]
fn node_agent_applies_settings_again_after_the_driver_was_loaded() {
    let machine = Machine::new();
    let file = "version: v1\ngpuSettings:\n- {gpus: 0-1, powerLimit: 300W, lockedClocks: {graphics: 1200}}\n";
    machine.0.write("settings.yaml", file);
    machine.0.write("control", "");
    let folder = |name: &str| machine.0.folder().join(name).display().to_string();
    let (kubelet, cdi, mps) = (folder("kubelet"), folder("cdi"), folder("mps"));
    let agent = Running::start(machine.0.command(&[
        "node",
        "run",
        "--no-kube",
        "--gpu-settings",
        "settings.yaml",
        "--listen",
        "127.0.0.1:0",
        "--kubelet-dir",
        &kubelet,
        "--cdi-dir",
        &cdi,
        "--mps-root",
        &mps,
        "--driver-root",
        &folder("driver"),
    ]));
    let applied = || (machine.driver(1, "graphics_clocks") == serde_json::json!([1200, 1200])).then_some(());
    wait_until("the settings are applied", applied);
    assert_eq!(machine.driver(0, "power_limit"), 300_000);
    machine.0.write("control", "unloaded\n");
    wait_until("the driver forgets them", || machine.driver(0, "power_limit").is_null().then_some(()));
    machine.0.write("control", "");
    wait_until("the settings are applied again", applied);
    assert_eq!(machine.driver(0, "power_limit"), 300_000);
    // A changed file is applied, too.
    machine.0.write("settings.yaml", &file.replace("300W", "350W"));
    wait_until("the new file is applied", || (machine.driver(0, "power_limit") == 350_000).then_some(()));
    drop(agent);
    machine.run(&["undo", "--yes"]).with_code(0);
    assert_eq!((machine.driver(0, "power_limit"), machine.record()), (400_000.into(), None));
}

#[test]
fn only_idle_gpus_are_reset() {
    let sandbox = Sandbox::new();
    let reset =
        |fixture: &str, gpus: &str| sandbox.run(&["gpu", "reset", "--gpus", gpus, "--fixture", fixture, "--yes"]);
    let refused = reset("h100x8", "0,5").with_code(1);
    assert!(refused.message().contains("GPU 0 is in use by pid 70001"), "{refused:?}");
    let done = reset("h100x8", "5-6").with_code(0);
    assert!(done.message().contains("nvidia-smi --gpu-reset -i 00000000:60:00.0,00000000:70:00.0"), "{done:?}");
    sandbox.run(&["gpu", "reset", "--gpus", "5", "--fixture", "h100x8"]).with_code(3);
    sandbox.run(&["gpu", "reset"]).with_code(2);
}
