//! `slipway gpu`, `top` and `doctor` on simulated GPUs.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;

use crate::support::{Done, Place, Running};

/// Both ends of a terminal: what a person types goes into the first.
fn terminal() -> (File, File) {
    let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&person).unwrap();
    unlockpt(&person).unwrap();
    let name = ptsname(&person, Vec::new()).unwrap().into_string().unwrap();
    (File::from(person), File::options().read(true).write(true).open(name).unwrap())
}

fn gpu(place: &Place, fixture: &str, words: &[&str]) -> Done {
    let words: Vec<&str> = ["gpu"].iter().chain(words).copied().chain(["--fixture", fixture]).collect();
    place.run(&words)
}

#[test]
fn gpus_are_seen_and_judged() {
    let place = Place::with_simulated_gpus();
    let done = gpu(&place, "h100x8", &["ls", "-o", "json"]).with_code(0);
    let machine = done.json();
    assert!(machine["simulated"] == true && machine["gpus"].as_array().unwrap().len() == 8, "{machine}");
    assert!(done.stderr.contains("SIMULATED"), "{done:?}");
    assert_eq!(machine["gpus"][0]["processes"][0]["pid"], 70001);
    assert!(gpu(&place, "broken", &["show", "2"]).with_code(0).stdout.contains("3 uncorrected memory errors"));
    gpu(&place, "t4", &["show", "9"]).with_code(1);
    assert!(gpu(&place, "h100x8", &["topology"]).with_code(0).stdout.contains("NV18"));
    assert!(gpu(&place, "l40sx4", &["topology", "-o", "svg"]).with_code(0).stdout.starts_with("<svg"));
    gpu(&place, "no-such", &["ls"]).with_code(1);
    let watched = gpu(&place, "broken", &["watch", "--seconds", "1"]).with_code(3).stdout;
    assert_eq!(watched.matches("XID 48: double-bit ECC error").count(), 1, "{watched}");
    assert!(!watched.contains("XID 79"), "{watched}");
    let spec = place.run(&["gpu", "spec", "A4000"]).with_code(0).stdout;
    assert!(spec.contains("48 SM x 128 cores x 2 operations x 1.560 GHz = 19.2 TFLOP/s"), "{spec}");
    let top = place.run(&["top", "--fixture", "h100x8", "--once"]).with_code(0).stdout;
    assert!(top.contains("SIMULATED") && top.contains("H100") && top.contains("python3"), "{top}");
}

#[test]
fn mig_survives_between_commands_and_is_changed_with_care() {
    let mut place = Place::with_simulated_gpus();
    place.set("SLIPWAY_FAKE_NVML_STATE", &place.folder().join("mig.json").display().to_string());
    let run = |words: &[&str]| gpu(&place, "a100x8", words);
    let layout = "3x1g.10gb + 1x3g.40gb";
    run(&["mig", "plan", layout, "--gpus", "0"]).with_code(3);
    run(&["mig", "apply", layout, "--gpus", "0"]).with_code(3);
    run(&["mig", "apply", layout, "--gpus", "0", "--dry-run", "--yes"]).with_code(3);
    // Whoever is asked has seen what they agree to, even if it goes into a file.
    let (mut person, terminal) = terminal();
    person.write_all(b"n\n").unwrap();
    let mut asked =
        place.command(&["gpu", "mig", "apply", layout, "--gpus", "0", "--fixture", "a100x8", "-o", "plan.json"]);
    asked.stdin(terminal);
    let asked = Running::start(asked).wait().with_code(3);
    assert!(asked.stdout.is_empty() && asked.stderr.contains("1g.10gb"), "{asked:?}");
    assert!(asked.stderr.contains("Change the layout? [y/N]"), "{asked:?}");
    serde_json::from_str::<Value>(&place.read("plan.json")).unwrap();
    let before = run(&["mig", "ls", "-o", "json"]).with_code(0).json();
    assert_eq!(before[0]["enabled"], false, "neither a dry run nor a no changes anything");
    let devices = |place: &Place| -> Vec<Value> {
        let machine = gpu(place, "a100x8", &["ls", "-o", "json"]).with_code(0).json();
        machine["gpus"][0]["mig"]["devices"].as_array().unwrap().clone()
    };
    let uuids = |devices: &[Value]| devices.iter().map(|d| d["uuid"].to_string()).collect::<BTreeSet<_>>();
    run(&["mig", "apply", layout, "--gpus", "0", "--yes"]).with_code(0);
    let before = devices(&place);
    let mut profiles: Vec<_> = before.iter().map(|d| d["profile"].as_str().unwrap()).collect();
    profiles.sort_unstable();
    assert_eq!(profiles, ["1g.10gb", "1g.10gb", "1g.10gb", "3g.40gb"]);
    run(&["mig", "apply", "4x1g.10gb + 1x3g.40gb", "--gpus", "0", "--yes"]).with_code(0);
    assert!(uuids(&before).is_subset(&uuids(&devices(&place))), "instances of both layouts stay");
    let exported = run(&["mig", "export"]).with_code(0).stdout;
    place.write("config.yaml", &exported);
    run(&["mig", "plan", "--config", "config.yaml"]).with_code(0);
    let refused = run(&["mig", "apply", "2x4g.40gb", "--gpus", "0", "--yes"]).with_code(1);
    assert!(refused.talk().contains("the nearest that fits is 1x4g.40gb"), "{refused:?}");
    let busy = Place::with_simulated_gpus();
    let refused = gpu(&busy, "h100x8", &["mig", "apply", "1g.10gb", "--gpus", "0", "--yes"]).with_code(1);
    assert!(refused.talk().contains("in use by pid 70001"), "{refused:?}");
}

#[test]
fn doctor_finds_what_is_wrong() {
    let mut place = Place::with_simulated_gpus();
    place.set("SLIPWAY_GPU_FIXTURE", "h100x8");
    let well = place.run(&["doctor", "-o", "json"]).with_code(0);
    assert!(well.stdout.contains("SIMULATED"), "{well:?}");
    place.set("SLIPWAY_GPU_FIXTURE", "broken");
    let found = place.run(&["doctor"]).with_code(3);
    assert!(found.stdout.contains("fallen off the bus"), "{found:?}");
    place.set("SLIPWAY_GPU_FIXTURE", "h100x8");
    place.set("SLIPWAY_RUNTIME", "ort");
    place.set("SLIPWAY_ONNXRUNTIME", "/no/such/lib.so");
    let sick = place.run(&["doctor"]).with_code(3);
    assert!(sick.stdout.contains("WRONG"), "{sick:?}");
}
