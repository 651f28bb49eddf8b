//! The checks of `slipway node accept` on simulated machines, with and without defects.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::sync::Mutex;

use slipway_fake_nvml::{FIXTURES, simulate, simulator};
use slipway_gpu::accept::accelerator::{self, Group};
use slipway_gpu::accept::check::{Check, Level, Outcome, Report};
use slipway_gpu::accept::limits::Limits;
use slipway_gpu::accept::{Request, run};
use slipway_gpu::nvml::Nvml;

/// The fake simulates one machine per process, so tests run one at a time.
static MACHINE: Mutex<()> = Mutex::new(());

/// Runs the checks on a built-in fixture with these lines of YAML added: to the machine, and to its second GPU.
fn accept(machine: &str, gpu_1: &str, request: &Request) -> Report {
    let _lock = MACHINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (_, text) = FIXTURES.iter().find(|(name, _)| *name == "h200x8").unwrap();
    let text = format!("{}\n{machine}\noverrides: {{1: {{{gpu_1}}}}}\n", text);
    let file = std::env::temp_dir().join(format!("slipway-accept-{}.yaml", std::process::id()));
    std::fs::write(&file, text).unwrap();
    accelerator::set_simulator(simulate);
    let nvml = Nvml::open_simulator(simulator(), file.to_str().unwrap()).unwrap();
    let hardware = accelerator::open(&nvml);
    let report = run(&nvml, &hardware, Path::new("/"), request, None, &mut |_| {}).unwrap();
    std::fs::remove_file(file).unwrap();
    report
}

fn level(number: u8) -> Request {
    Request::new(Level::try_from(number).unwrap())
}

/// The checks that prevent acceptance, as `NAME DEVICE`.
fn failures(report: &Report) -> Vec<String> {
    report.failures().map(|c| format!("{} {}", c.name, c.device)).collect()
}

fn check<'a>(report: &'a Report, name: &str, device: &str) -> &'a Check {
    report
        .checks
        .iter()
        .find(|c| c.name == name && c.device == device)
        .unwrap_or_else(|| panic!("no {name} of {device}"))
}

#[test]
fn sound_machine_passes_every_level() {
    for number in 1..=4 {
        let report = accept("", "", &level(number));
        assert_eq!(failures(&report), [""; 0], "level {number}");
        assert_eq!(report.passed_level().map(Level::number), Some(number));
        assert!(report.complete && report.simulated && report.gpus.len() == 8);
        assert!(report.checks.iter().all(|c| c.level <= report.level));
        let parsed = Report::parse(&serde_json::to_vec(&report).unwrap()).unwrap();
        assert_eq!(parsed, report);
    }
}

#[test]
fn bandwidths_are_compared_with_sheet_and_links() {
    let report = accept("", "", &level(3));
    let expected = |name: &str, device: &str| {
        let measured = check(&report, name, device).measured.clone().unwrap();
        (measured.expected.unwrap() * 10.0).round() / 10.0
    };
    // H200: PCIe 5.0 x16, 4.8 TB/s, and 900 GB/s of NVLink in both directions.
    assert_eq!(expected("pcie", "gpu 0"), 63.0);
    assert!((expected("memory_bandwidth", "gpu 0") - 4800.0).abs() < 50.0);
    assert_eq!(expected("nvbandwidth", "gpu 0 -> gpu 1"), 450.0);
    assert_eq!(expected("all_reduce", "machine"), 450.0);
}

#[test]
fn narrow_slot_fails_level_1() {
    let report = accept("", "pcie_width: 8, pcie_width_max: 16", &level(2));
    assert_eq!(failures(&report), ["pcie_link gpu 1"], "the copy is as fast as eight lanes are");
    assert_eq!(report.passed_level(), None);
    assert!(check(&report, "pcie_link", "gpu 1").hint.is_some());
}

#[test]
fn defects_fail_the_check_that_is_named_after_them() {
    for (number, gpu_1, expected, passed) in [
        (1, "nvlinks_down: 1", vec!["nvlink gpu 1"], None),
        (1, "nvlinks_down: 18", vec!["nvlink gpu 1"], None),
        (1, "remapping_pending: true", vec!["page_retirement gpu 1"], None),
        (1, "ecc_uncorrected: 1", vec!["ecc gpu 1"], None),
        (1, "fabric: {state: failed}", vec!["fabric gpu 1"], None),
        (1, "throttle: 8", vec!["clocks gpu 1"], None),
        (2, "memory_fault: 4096", vec!["memory gpu 1"], Some(1)),
        (2, "speed_percent: 70", vec!["pcie gpu 1", "memory_bandwidth gpu 1"], Some(1)),
        (3, "wrong_results: 2", vec!["diagnostic gpu 1"], Some(2)),
        (3, "throttle_under_load: 128", vec!["thermal gpu 1"], Some(2)),
        (4, "throttle_under_load: 8", vec!["thermal gpu 1", "pulse_test gpu 1"], Some(2)),
    ] {
        let mut report = accept("", gpu_1, &level(number));
        // A slow GPU also slows the others' links.
        report.checks.retain(|c| !c.name.starts_with("nvbandwidth"));
        assert_eq!(failures(&report), expected, "{gpu_1}");
        assert!(report.failures().all(|c| c.hint.is_some()), "{gpu_1}");
        assert_eq!(report.passed_level().map(Level::number), passed, "{gpu_1}");
    }
}

#[test]
fn lost_gpu_passes_nothing() {
    let report = accept("", "lost_after_ms: 0", &level(2));
    let of_lost = |c: &&Check| c.device == "gpu 1" && c.name != "errors";
    assert!(report.checks.iter().filter(of_lost).all(|c| !c.outcome.is_acceptable()));
    assert_eq!(failures(&report), ["driver gpu 1", "pcie gpu 1", "memory gpu 1", "memory_bandwidth gpu 1"]);
}

#[test]
fn memory_mismatch_names_address_pattern_and_bits() {
    let report = accept("", "memory_fault: 4096", &level(4));
    let what = &check(&report, "memtest", "gpu 1").what;
    assert!(what.contains("offset 0x1000") && what.contains("with zeros and ones"), "{what}");
    assert!(what.contains("wrote 0xffffffffffffffff, read 0xfffffffffffffffe"), "{what}");
}

#[test]
fn missing_libraries_prevent_their_level_unless_left_out() {
    let report = accept("missing_libraries: [nccl]", "", &level(3));
    let reduce = check(&report, "all_reduce", "machine");
    assert_eq!(reduce.outcome, Outcome::CannotRun);
    assert!(reduce.hint.as_ref().unwrap().contains("libnccl2"));
    assert_eq!(report.passed_level().map(Level::number), Some(2));

    let mut request = level(3);
    request.limits.skip = vec!["all_reduce".into()];
    let report = accept("missing_libraries: [nccl]", "", &request);
    assert_eq!(check(&report, "all_reduce", "machine").outcome, Outcome::Skip);
    assert_eq!(report.passed_level().map(Level::number), Some(3));

    let report = accept("missing_libraries: [cublas, nvrtc]", "", &level(3));
    assert_eq!(report.passed_level().map(Level::number), Some(1));
    assert!(report.failures().all(|c| c.outcome == Outcome::CannotRun && c.hint.is_some()));
}

#[test]
fn busy_and_partitioned_gpus_are_not_loaded() {
    let report = accept("", "processes: [{pid: 7, name: train, memory_mib: 10}]", &level(2));
    let expected = ["processes gpu 1", "pcie gpu 1", "memory gpu 1", "memory_bandwidth gpu 1"];
    assert_eq!(failures(&report), expected);
    assert_eq!(check(&report, "pcie", "gpu 0").outcome, Outcome::Pass);
    let report = accept("", "processes: [{pid: 7, name: train, memory_mib: 10}]", &level(1));
    assert_eq!(check(&report, "processes", "gpu 1").outcome, Outcome::Warn);
}

#[test]
fn selected_checks_and_gpus_are_no_acceptance() {
    let request = Request { only: vec!["pcie".into()], gpus: vec![2, 3], ..level(2) };
    let report = accept("", "", &request);
    let names: Vec<String> = report.checks.iter().map(|c| format!("{} {}", c.name, c.device)).collect();
    assert_eq!(names, ["pcie gpu 2", "pcie gpu 3"]);
    assert!(!report.complete && report.passed());
}

#[test]
fn machines_join_a_group_when_they_are_ready() {
    let _lock = MACHINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    accelerator::set_simulator(simulate);
    let nvml = Nvml::open_simulator(simulator(), "h200x8").unwrap();
    let hardware = accelerator::open(&nvml);
    let request = Request { only: vec!["all_reduce_nodes".into()], ..level(4) };
    let mut joined = Vec::new();
    let mut join = |accelerator: &dyn accelerator::Accelerator, ranks: usize| {
        joined.push(ranks);
        Ok(Group { id: accelerator.unique_id()?, ranks: 16, first: 8, machines: 2 })
    };
    let report = run(&nvml, &hardware, Path::new("/"), &request, Some(&mut join), &mut |_| {}).unwrap();
    assert_eq!(joined, [8]);
    let check = check(&report, "all_reduce_nodes", "machine");
    assert!(check.outcome == Outcome::Pass && check.what.starts_with("16 GPUs of 2 machines"), "{}", check.what);
}

#[test]
fn limits_are_validated() {
    let limits = Limits::parse("pcie: 0.8\nstressSeconds: 60\nskip: [memtest]").unwrap();
    assert_eq!((limits.pcie, limits.stress_seconds, limits.nvlink), (0.8, 60, Limits::default().nvlink));
    for (text, word) in [
        ("pcie: 80", "pcie is 80"),
        ("stressSeconds: 0", "stressSeconds is 0"),
        ("skip: [memtests]", "'memtests'"),
        ("nvlinks: 0.5", "nvlinks"),
    ] {
        let error = Limits::parse(text).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}
