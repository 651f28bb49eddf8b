//! Tests slipway's NVML code with the fake library: dlopen, the C ABI, inventory, topology, and MIG.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use slipway_fake_nvml::FIXTURES;
use slipway_gpu::GpuError;
use slipway_gpu::inventory::{Inventory, Severity};
use slipway_gpu::link::Link;
use slipway_gpu::mig::{self, Config, Desired};
use slipway_gpu::nvml::{FabricState, Nvml, SYMBOLS, codes};
use slipway_gpu::topology::Topology;

/// The fake simulates one machine per process, so tests run one at a time.
static MACHINE_LOCK: Mutex<()> = Mutex::new(());

struct Machine {
    nvml: Nvml,
    _lock: MutexGuard<'static, ()>,
}

/// The fake library, which cargo builds next to this test. The copy in the parent folder may be older.
fn library() -> PathBuf {
    std::env::current_exe().unwrap().with_file_name("libslipway_fake_nvml.so")
}

fn machine(fixture: &str) -> Machine {
    let lock = MACHINE_LOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    Machine { nvml: Nvml::open_fixture(&library(), fixture).unwrap(), _lock: lock }
}

#[allow(unsafe_code)] // the fake's own function, called as its documentation says
fn inject(name: &str, code: u32) {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: the symbol is the fake's, with this signature.
    unsafe {
        let library = libloading::Library::new(library()).unwrap();
        let inject: libloading::Symbol<'_, unsafe extern "C" fn(*const std::ffi::c_char, u32) -> u32> =
            library.get(b"slipwayFakeInject\0").unwrap();
        assert_eq!(inject(name.as_ptr(), code), 0);
    }
}

#[test]
#[allow(unsafe_code)] // looks symbols up, calls none
fn fake_exports_every_symbol_that_slipway_calls() {
    // SAFETY: loading the fake runs no code of its own.
    let library = unsafe { libloading::Library::new(library()).unwrap() };
    for symbol in SYMBOLS {
        // SAFETY: the pointer is not used.
        let found = unsafe { library.get::<*const ()>(symbol.as_bytes()) };
        assert!(found.is_ok(), "the fake lacks {symbol}");
    }
    assert!(SYMBOLS.len() > 60);
}

#[test]
fn linked_simulator_works_and_exports_no_symbols() {
    let _lock = MACHINE_LOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let simulator = slipway_fake_nvml::simulator();
    let nvml = Nvml::open_simulator(simulator, "h100x8").unwrap();
    assert!(nvml.is_simulated());
    assert_eq!(Inventory::collect(&nvml).unwrap().gpus.len(), 8);
    assert!(matches!(Nvml::open_simulator(simulator, "nothing"), Err(GpuError::Invalid(_))));
    // A rejected fixture leaves the open machine as it is, and the next one starts with its own fixture.
    assert_eq!(nvml.count().unwrap(), 8);
    drop(nvml);
    assert_eq!(Nvml::open_simulator(simulator, "t4").unwrap().count().unwrap(), 1);
    let program = libloading::os::unix::Library::this();
    for symbol in SYMBOLS {
        // SAFETY: the pointer is not used.
        #[allow(unsafe_code)]
        let found = unsafe { program.get::<*const ()>(symbol.as_bytes()) };
        assert!(found.is_err(), "{symbol} could replace the function of a driver's library");
    }
}

/// Two users share one machine: if a third cannot initialise, it must not shut the machine down for them.
#[test]
fn failed_initialisation_keeps_the_machine_of_others() {
    let m = machine("t4");
    inject("nvmlInit_v2", codes::DRIVER_NOT_LOADED);
    let failed = Nvml::open_fixture(&library(), "t4").err();
    inject("nvmlInit_v2", 0);
    assert!(matches!(failed, Some(GpuError::Nvml(e)) if e.code == codes::DRIVER_NOT_LOADED));
    assert_eq!(m.nvml.count().unwrap(), 1);
}

#[test]
fn every_fixture_is_collected_completely() {
    for (fixture, count, name) in [
        ("t4", 1, "Tesla T4"),
        ("a4000", 1, "NVIDIA RTX A4000"),
        ("a100x8", 8, "NVIDIA A100-SXM4-80GB"),
        ("h100x8", 8, "NVIDIA H100 80GB HBM3"),
        ("h200x8", 8, "NVIDIA H200"),
        ("b200x8", 8, "NVIDIA B200"),
        ("l40sx4", 4, "NVIDIA L40S"),
    ] {
        let m = machine(fixture);
        let found = Inventory::collect(&m.nvml).unwrap();
        assert_eq!((found.gpus.len(), found.gpus[0].name.as_str()), (count, name));
        assert_eq!(found.cuda, "13.0");
        let bad: Vec<_> = found.findings().filter(|(_, f)| f.severity > Severity::Note).collect();
        assert!(bad.is_empty(), "{fixture}: {bad:?}");
        let card = slipway_gpu::sheet::find(name).unwrap();
        assert_eq!(found.gpus[0].cores, Some(card.multiprocessors * card.cores_per_multiprocessor), "{fixture}");
    }
}

#[test]
fn fabric_state_of_each_gpu_is_collected() {
    let fabrics = |fixture: &str| {
        let m = machine(fixture);
        let found = Inventory::collect(&m.nvml).unwrap();
        (found.gpus.iter().map(|g| g.fabric.clone()).collect::<Vec<_>>(), found.clique_id())
    };
    let (rack, clique) = fabrics("gb200x4");
    let clique_of_rack = "6a0b5c1d-2e3f-4051-8673-8495a6b7c8d9.32766";
    assert!(rack.iter().flatten().count() == 4 && clique.as_deref() == Some(clique_of_rack), "{rack:?} {clique:?}");
    let (board, clique) = fabrics("h100x8");
    assert!(board.iter().flatten().all(|f| f.state == FabricState::Completed && f.cluster_uuid.is_none()));
    assert_eq!(clique, None, "the fabric of a board ends at the machine");
    assert_eq!(fabrics("a100x8").0, vec![None; 8], "not reported before Hopper");
}

#[test]
fn unregistered_gpus_have_a_finding_that_explains_error_802() {
    let text = FIXTURES.iter().find(|(name, _)| *name == "h100x8").unwrap().1;
    let states = ["not-started", "in-progress", "failed", "completed, health: 0x1"];
    let overrides: String =
        states.iter().enumerate().map(|(n, s)| format!("  {n}: {{fabric: {{state: {s}}}}}\n")).collect();
    let start = text.find("overrides:").unwrap();
    let end = text.find("numa:").unwrap();
    let file = std::env::temp_dir().join(format!("slipway-fabric-{}.yaml", std::process::id()));
    std::fs::write(&file, format!("{}overrides:\n{overrides}{}", &text[..start], &text[end..])).unwrap();
    let m = machine(file.to_str().unwrap());
    let found = Inventory::collect(&m.nvml).unwrap();
    std::fs::remove_file(&file).unwrap();
    let finding = |gpu: usize| {
        found.gpus[gpu].findings.iter().map(|f| format!("{:?} {}", f.severity, f.what)).collect::<Vec<_>>()
    };
    assert!(
        finding(0)[0]
            .starts_with("Error registration with the NVLink fabric not started; CUDA programs end with error 802")
    );
    assert!(finding(1)[0].starts_with("Warning registration with the NVLink fabric in progress"));
    assert!(finding(2)[0].contains("failed: unknown error (NVML 999)"));
    assert_eq!(finding(3), ["Warning the NVLink fabric reports: degraded bandwidth"]);
    assert!(finding(4).is_empty());
    // Older drivers know older versions of the struct, or only the function without versions.
    drop(m);
    let m = machine("gb200x4");
    inject("nvmlDeviceGetGpuFabricInfoV", codes::FUNCTION_NOT_FOUND);
    let clique = Inventory::collect(&m.nvml).unwrap().clique_id();
    inject("nvmlDeviceGetGpuFabricInfoV", 0);
    assert!(clique.is_some_and(|id| id.ends_with(".32766")));
}

#[test]
fn inventory_reports_utilization_and_processes() {
    let m = machine("h100x8");
    let gpus = Inventory::collect(&m.nvml).unwrap().gpus;
    assert_eq!(gpus[0].utilization_percent, Some(96));
    assert!(gpus[0].power_watts.unwrap() > 600.0);
    let process = &gpus[0].processes[0];
    assert_eq!((process.pid, process.memory_bytes, process.sm_percent), (70001, Some(71240 << 20), Some(97)));
    assert_eq!(process.owner.command, "/opt/venv/bin/python3");
    assert_eq!(gpus[5].throttle, ["idle"]);
    assert_eq!(gpus[0].memory_total, Some(81559 << 20));
}

#[test]
fn broken_machine_has_findings() {
    let m = machine("broken");
    let found = Inventory::collect(&m.nvml).unwrap();
    let all: Vec<String> = found.findings().map(|(gpu, f)| format!("{gpu} {:?} {}", f.severity, f.what)).collect();
    for expected in [
        "0 Warning PCIe x4 in use, the card has x16",
        "0 Warning 51234 PCIe packets were retransmitted",
        "0 Note persistence mode is off: the first call after an idle period takes seconds",
        "1 Warning clocks are reduced: hardware slowdown",
        "1 Warning clocks are reduced: temperature (hardware)",
        "1 Warning 89 °C, and the card slows down at 89 °C",
        "1 Note power is limited to 300 of 400 W",
        "2 Error 3 uncorrected memory errors",
        "2 Warning a memory row remapping is pending",
        "2 Warning 2 of 12 NVLinks are down",
        "3 Error the GPU has fallen off the bus (XID 79)",
    ] {
        assert!(all.iter().any(|f| f == expected), "{expected} is not among {all:#?}");
    }
    assert_eq!(found.gpus.len(), 4);
}

#[test]
fn xids_are_delivered_once_and_waiting_times_out() {
    let m = machine("broken");
    let devices: Vec<_> = (0..3).map(|i| m.nvml.device(i).unwrap()).collect();
    let watch = m.nvml.watch(&devices).unwrap();
    let event = watch.wait(5_000).unwrap().unwrap();
    assert_eq!((event.data, event.bus_id.as_str()), (48, "00000000:30:00.0"));
    assert_eq!(watch.wait(20).unwrap(), None, "each XID is delivered once");
    assert_eq!(m.nvml.watch(&devices[..1]).unwrap().wait(20).unwrap(), None);
}

#[test]
fn topology_is_read_from_links_and_switches() {
    let m = machine("h100x8");
    let inventory = Inventory::collect(&m.nvml).unwrap();
    let found = Topology::collect(&m.nvml, &inventory, std::path::Path::new("/nonexistent")).unwrap();
    assert_eq!(found.links[0][7], Link::NvLink(18));
    assert_eq!(found.links[3][3], Link::Same);
    assert_eq!((found.cpus[0].as_str(), found.cpus[7].as_str()), ("0-55", "56-111"));
    drop(m);
    let m = machine("l40sx4");
    let inventory = Inventory::collect(&m.nvml).unwrap();
    let found = Topology::collect(&m.nvml, &inventory, std::path::Path::new("/nonexistent")).unwrap();
    let short: Vec<String> = found.links[0].iter().map(|l| l.short()).collect();
    assert_eq!(short, ["X", "PIX", "SYS", "SYS"]);
}

#[test]
fn mig_geometry_of_a_device_matches_the_table() {
    for (fixture, family) in
        [("a100x8", "a100-80gb"), ("h100x8", "h100-80gb"), ("h200x8", "h200-141gb"), ("b200x8", "b200-180gb")]
    {
        let m = machine(fixture);
        let live = mig::Geometry::from_device(&m.nvml.device(0).unwrap()).unwrap();
        assert_eq!(live.profiles, mig::Geometry::family(family).unwrap().profiles);
    }
}

fn instances(nvml: &Nvml, gpu: usize) -> Vec<(String, u32)> {
    mig::layout(nvml).unwrap()[gpu].instances.iter().map(|i| (i.profile.clone(), i.at.start)).collect()
}

#[test]
fn layout_change_keeps_common_instances() {
    let m = machine("a100x8");
    let layouts = mig::layout(&m.nvml).unwrap();
    assert_eq!(layouts.len(), 8);
    let desired = mig::parse("3x1g.10gb + 1x3g.40gb").unwrap();
    let plan = mig::plan(&layouts, &Desired::Together(&desired, &[0])).unwrap();
    assert_eq!(plan.changes[0].mode, Some(true));
    mig::apply(&m.nvml, &layouts, &plan).unwrap();
    assert_eq!(instances(&m.nvml, 0).len(), 4);
    let inventory = Inventory::collect(&m.nvml).unwrap();
    let devices = &inventory.gpus[0].mig.as_ref().unwrap().devices;
    let uuids: Vec<&str> = devices.iter().map(|d| d.uuid.as_str()).collect();
    assert_eq!(uuids.len(), 4);

    // The next layout has two small instances and the large one in common.
    let layouts = mig::layout(&m.nvml).unwrap();
    let desired = mig::parse("2x1g.10gb + 1x3g.40gb + 1x1g.20gb").unwrap();
    let plan = mig::plan(&layouts, &Desired::Together(&desired, &[0])).unwrap();
    assert_eq!((plan.changes[0].keep.len(), plan.changes[0].destroy.len(), plan.changes[0].create.len()), (3, 1, 1));
    mig::apply(&m.nvml, &layouts, &plan).unwrap();
    let after = Inventory::collect(&m.nvml).unwrap();
    let kept = after.gpus[0].mig.as_ref().unwrap().devices.iter().filter(|d| uuids.contains(&d.uuid.as_str())).count();
    assert_eq!(kept, 3, "common instances keep their UUIDs");

    // The same layout again changes nothing.
    let layouts = mig::layout(&m.nvml).unwrap();
    assert!(mig::plan(&layouts, &Desired::Together(&desired, &[0])).unwrap().is_empty());
}

#[test]
fn failed_layout_change_is_rolled_back() {
    let m = machine("a100x8");
    let layouts = mig::layout(&m.nvml).unwrap();
    let first = mig::parse("2x2g.20gb + 1x3g.40gb").unwrap();
    mig::apply(&m.nvml, &layouts, &mig::plan(&layouts, &Desired::Together(&first, &[0])).unwrap()).unwrap();
    let before = instances(&m.nvml, 0);
    let layouts = mig::layout(&m.nvml).unwrap();
    let second = mig::parse("1x4g.40gb + 1x3g.40gb").unwrap();
    let plan = mig::plan(&layouts, &Desired::Together(&second, &[0])).unwrap();
    assert_eq!(plan.changes[0].keep.len(), 1);
    // Creating the GPU instance succeeds, creating its compute instance fails.
    inject("nvmlGpuInstanceGetComputeInstanceProfileInfo", 0);
    inject("nvmlGpuInstanceCreateComputeInstance", codes::INSUFFICIENT_RESOURCES);
    let failed = mig::apply(&m.nvml, &layouts, &plan);
    inject("nvmlGpuInstanceCreateComputeInstance", 0);
    let Err(GpuError::Apply { reason, state }) = failed else { panic!("apply did not fail") };
    assert!(reason.contains("creating 4g.40gb at 0"), "{reason}");
    // The rollback cannot create instances either, and reports that.
    assert!(state.contains("could not be rolled back completely"), "{state}");

    // If only creating the GPU instance fails, the error names the reason.
    let layouts = mig::layout(&m.nvml).unwrap();
    let plan = mig::plan(&layouts, &Desired::Together(&first, &[0])).unwrap();
    mig::apply(&m.nvml, &layouts, &plan).unwrap();
    assert_eq!(instances(&m.nvml, 0), before);
    let layouts = mig::layout(&m.nvml).unwrap();
    let plan = mig::plan(&layouts, &Desired::Together(&second, &[0])).unwrap();
    inject("nvmlDeviceCreateGpuInstanceWithPlacement", codes::NO_PERMISSION);
    let failed = mig::apply(&m.nvml, &layouts, &plan).unwrap_err().to_string();
    inject("nvmlDeviceCreateGpuInstanceWithPlacement", 0);
    assert!(failed.contains("no permission"), "{failed}");
}

#[test]
fn mig_parted_files_are_applied_and_exported() {
    let m = machine("h100x8");
    let config = Config::parse(
        "version: v1\nmig-configs:\n  half:\n    - devices: [5, 6]\n      mig-enabled: true\n      mig-devices: {\"3g.40gb\": 2}\n    - devices: [7]\n      mig-enabled: false\n",
    )
    .unwrap();
    let layouts = mig::layout(&m.nvml).unwrap();
    let plan = mig::plan(&layouts, &Desired::Rules(config.layout("half").unwrap())).unwrap();
    assert_eq!(plan.changes.len(), 3);
    mig::apply(&m.nvml, &layouts, &plan).unwrap();
    assert_eq!(instances(&m.nvml, 6), [("3g.40gb".to_owned(), 0), ("3g.40gb".to_owned(), 4)]);
    let exported = mig::export(&mig::layout(&m.nvml).unwrap(), "current");
    let again =
        mig::plan(&mig::layout(&m.nvml).unwrap(), &Desired::Rules(exported.layout("current").unwrap())).unwrap();
    assert!(again.is_empty(), "the exported layout equals the current one");
}

/// Layouts of mig-parted's default configuration: the rule of this machine's card is used, and other cards' profiles are no error.
#[test]
fn layouts_for_several_cards_are_planned() {
    let config = Config::parse(
        "version: v1
mig-configs:
  all-1g.10gb:
    - device-filter: [\"0x233010DE\", \"0x20B210DE\"]
      devices: all
      mig-enabled: true
      mig-devices: {\"1g.10gb\": 7}
    - device-filter: [\"0x20B010DE\"]
      devices: all
      mig-enabled: true
      mig-devices: {\"1g.10gb\": 4}
  all-1g.24gb.me.all:
    - {devices: all, mig-enabled: true, mig-devices: {\"1g.24gb+me.all\": 1}}
",
    )
    .unwrap();
    for fixture in ["a100x8", "h100x8"] {
        let m = machine(fixture);
        let layouts = mig::layout(&m.nvml).unwrap();
        let plan = |layout: &str| mig::plan(&layouts, &Desired::Rules(config.layout(layout).unwrap()));
        let changes = plan("all-1g.10gb").unwrap().changes;
        assert_eq!(changes.iter().map(|c| c.create.len()).collect::<Vec<_>>(), [7; 8], "{fixture}");
        let refused = plan("all-1g.24gb.me.all").unwrap_err().to_string();
        assert!(refused.contains("has no profile '1g.24gb+me.all'"), "{refused}");
    }
}

#[test]
fn compute_instances_are_created_shown_and_exported() {
    let m = machine("a100x8");
    let desired = mig::parse("3x1c.3g.40gb + 1x3g.40gb").unwrap();
    let layouts = mig::layout(&m.nvml).unwrap();
    let plan = mig::plan(&layouts, &Desired::Together(&desired, &[0])).unwrap();
    mig::apply(&m.nvml, &layouts, &plan).unwrap();
    let layouts = mig::layout(&m.nvml).unwrap();
    let labels: Vec<String> = layouts[0].instances.iter().map(mig::Instance::label).collect();
    assert_eq!(labels.iter().filter(|l| *l == "3g.40gb(1c+1c+1c)").count(), 1, "{labels:?}");
    assert!(
        mig::plan(&layouts, &Desired::Together(&desired, &[0])).unwrap().is_empty(),
        "applying twice changes nothing"
    );
    let inventory = Inventory::collect(&m.nvml).unwrap();
    let devices = &inventory.gpus[0].mig.as_ref().unwrap().devices;
    let mut profiles: Vec<&str> = devices.iter().map(|d| d.profile.as_str()).collect();
    profiles.sort_unstable();
    assert_eq!(profiles, ["1c.3g.40gb", "1c.3g.40gb", "1c.3g.40gb", "3g.40gb"]);
    let partial = devices.iter().find(|d| d.profile == "1c.3g.40gb").unwrap();
    assert_eq!(
        (partial.attributes.multiprocessors, mig::resource(&partial.profile).as_str()),
        (14, "nvidia.com/mig-1c.3g.40gb")
    );
    let exported = mig::export(&layouts, "current");
    assert_eq!(exported.layout("current").unwrap()[0].devices()["1c.3g.40gb"], 3);
    // A whole instance in place of the three needs other compute instances, so that GPU instance is created again.
    let whole = mig::parse("2x3g.40gb").unwrap();
    let plan = mig::plan(&layouts, &Desired::Together(&whole, &[0])).unwrap();
    assert_eq!((plan.changes[0].keep.len(), plan.changes[0].destroy.len(), plan.changes[0].create.len()), (1, 1, 1));
    mig::apply(&m.nvml, &layouts, &plan).unwrap();
    assert_eq!(Inventory::collect(&m.nvml).unwrap().gpus[0].mig.as_ref().unwrap().devices.len(), 2);
}

#[test]
fn last_rule_wins_and_missing_gpus_are_named() {
    let m = machine("h100x8");
    let layouts = mig::layout(&m.nvml).unwrap();
    let rules = |rules: &str| Config::parse(&format!("version: v1\nmig-configs:\n  x:\n{rules}")).unwrap();
    let config = rules(
        "    - {devices: all, mig-enabled: true, mig-devices: {\"1g.10gb\": 7}}\n    - {devices: [7], mig-enabled: true, mig-devices: {\"7g.80gb\": 1}}\n",
    );
    let plan = mig::plan(&layouts, &Desired::Rules(config.layout("x").unwrap())).unwrap();
    assert_eq!((plan.changes[6].create.len(), plan.changes[7].create.len()), (7, 1));
    let config = rules("    - {devices: [0, 42], mig-enabled: false}\n");
    let error = mig::plan(&layouts, &Desired::Rules(config.layout("x").unwrap())).unwrap_err().to_string();
    assert!(error.contains("there is no GPU 42; there are 8 GPUs, 0 to 7"), "{error}");
    let error = mig::plan(&layouts, &Desired::Together(&mig::parse("1g.10gb").unwrap(), &[0, 42])).unwrap_err();
    assert!(error.to_string().contains("no GPU 42"), "{error}");
}

#[test]
fn rtx_pro_and_gb200_report_their_profiles() {
    let m = machine("rtx-pro-6000x8");
    let layouts = mig::layout(&m.nvml).unwrap();
    assert!(
        layouts[0].geometry.names().contains("1g.24gb+me.all") && layouts[0].geometry.names().contains("2g.48gb-me")
    );
    let desired = mig::parse("1g.24gb+me.all + 3x1g.24gb-me").unwrap();
    mig::apply(&m.nvml, &layouts, &mig::plan(&layouts, &Desired::Together(&desired, &[0])).unwrap()).unwrap();
    assert_eq!(instances(&m.nvml, 0).len(), 4);
    drop(m);
    let m = machine("gb200x4");
    let profile = mig::layout(&m.nvml).unwrap()[0].geometry.profile("1g.47gb").unwrap().clone();
    assert_eq!((profile.multiprocessors, profile.id), (32, 15));
}

#[test]
fn gpu_in_use_is_not_changed() {
    let m = machine("h100x8");
    let layouts = mig::layout(&m.nvml).unwrap();
    let desired = mig::parse("1g.10gb").unwrap();
    let plan = mig::plan(&layouts, &Desired::Together(&desired, &[0])).unwrap();
    let Err(GpuError::InUse(users)) = mig::apply(&m.nvml, &layouts, &plan) else { panic!("the GPU was changed") };
    assert!(users.contains("GPU 0 is in use by pid 70001"), "{users}");
    assert!(!mig::layout(&m.nvml).unwrap()[0].enabled);
}

#[test]
fn impossible_layouts_name_the_reason() {
    let m = machine("a100x8");
    let layouts = mig::layout(&m.nvml).unwrap();
    let reason = |text: &str, gpus: &[u32]| {
        mig::plan(&layouts, &Desired::Together(&mig::parse(text).unwrap(), gpus)).unwrap_err().to_string()
    };
    assert!(reason("3x4g.40gb", &[0, 1]).contains("at most 2 fit; the closest layout that fits is 2x4g.40gb"));
    assert!(reason("1g.5gb", &[0]).contains("has no profile '1g.5gb'"));
    drop(m);
    let m = machine("t4");
    let none = mig::layout(&m.nvml).unwrap();
    assert!(mig::plan(&none, &Desired::Together(&mig::parse("1g.5gb").unwrap(), &[0])).is_err());
}

/// Any call may fail with any error: nothing panics, and the rest of the inventory is still collected.
#[test]
fn every_error_at_every_call_is_survived() {
    let m = machine("broken");
    let errors = [1, 2, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 17, 18, 19, 20, 21, 23, 25, 27, 28, 29, 999];
    let mut collected = 0;
    for symbol in SYMBOLS.iter().filter(|s| !matches!(**s, "nvmlInit_v2" | "nvmlShutdown")) {
        for code in errors {
            inject(symbol, code);
            if let Ok(found) = Inventory::collect(&m.nvml) {
                collected += 1;
                let _ = Topology::collect(&m.nvml, &found, std::path::Path::new("/nonexistent"));
            }
            let devices: Vec<_> = (0..4).filter_map(|i| m.nvml.device(i).ok()).collect();
            let _ = m.nvml.watch(&devices).map(|watch| watch.wait(0));
            if let Ok(layouts) = mig::layout(&m.nvml) {
                let desired = mig::parse("1g.5gb + 2g.10gb").unwrap();
                if let Ok(plan) = mig::plan(&layouts, &Desired::Together(&desired, &[0])) {
                    let _ = mig::apply(&m.nvml, &layouts, &plan);
                }
            }
            inject(symbol, 0);
            // Reset MIG for the next error.
            let layouts = mig::layout(&m.nvml).unwrap();
            let off = Config::parse("version: v1\nmig-configs: {off: [{devices: all, mig-enabled: false}]}").unwrap();
            let plan = mig::plan(&layouts, &Desired::Rules(off.layout("off").unwrap())).unwrap();
            let _ = mig::apply(&m.nvml, &layouts, &plan);
        }
    }
    // Only a failure to enumerate GPUs fails the inventory.
    assert_eq!(collected, (SYMBOLS.len() - 3) * errors.len());
}

#[test]
fn unknown_fixture_is_rejected() {
    let _lock = MACHINE_LOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    assert!(matches!(Nvml::open_fixture(&library(), "nothing"), Err(GpuError::Invalid(_))));
    assert!(matches!(Nvml::open(std::path::Path::new("/nonexistent.so")), Err(GpuError::NoNvml { .. })));
}
