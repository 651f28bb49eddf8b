//! Tests of `slipway gpu`, `top` and `doctor` with simulated GPUs.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};

use crate::support::{CommandOutput, Running, Sandbox, Server};

/// Both ends of a pseudo-terminal: the user's input is written to the first.
fn terminal() -> (File, File) {
    let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&user).unwrap();
    unlockpt(&user).unwrap();
    let name = ptsname(&user, Vec::new()).unwrap().into_string().unwrap();
    (File::from(user), File::options().read(true).write(true).open(name).unwrap())
}

fn gpu(sandbox: &Sandbox, fixture: &str, words: &[&str]) -> CommandOutput {
    let words: Vec<&str> = ["gpu"].iter().chain(words).copied().chain(["--fixture", fixture]).collect();
    sandbox.run(&words)
}

#[test]
fn gpus_and_their_findings_are_listed() {
    let sandbox = Sandbox::new();
    let done = gpu(&sandbox, "h100x8", &["ls", "-o", "json"]).with_code(0);
    let machine = done.json();
    assert!(machine["simulated"] == true && machine["gpus"].as_array().unwrap().len() == 8, "{machine}");
    assert!(done.stderr.contains("SIMULATED"), "{done:?}");
    assert_eq!(machine["gpus"][0]["processes"][0]["pid"], 70001);
    assert!(gpu(&sandbox, "broken", &["show", "2"]).with_code(0).stdout.contains("3 uncorrected memory errors"));
    gpu(&sandbox, "t4", &["show", "9"]).with_code(1);
    assert!(gpu(&sandbox, "h100x8", &["topology"]).with_code(0).stdout.contains("NV18"));
    assert!(gpu(&sandbox, "l40sx4", &["topology", "-o", "svg"]).with_code(0).stdout.starts_with("<svg"));
    gpu(&sandbox, "no-such", &["ls"]).with_code(1);
    let watched = gpu(&sandbox, "broken", &["watch", "--seconds", "1"]).with_code(3).stdout;
    assert_eq!(watched.matches("XID 48: double-bit ECC error").count(), 1, "{watched}");
    assert!(!watched.contains("XID 79"), "{watched}");
    let spec = sandbox.run(&["gpu", "spec", "A4000"]).with_code(0).stdout;
    assert!(spec.contains("48 SM x 128 cores x 2 operations x 1.560 GHz = 19.2 TFLOP/s"), "{spec}");
    let several = sandbox.run(&["gpu", "spec", "h100"]).with_code(0);
    assert!(several.stdout.contains("H100 80GB HBM3") && several.stderr.contains("H100 PCIe, H100 NVL"), "{several:?}");
    let xid = sandbox.run(&["gpu", "xid", "149"]).with_code(0).stdout;
    assert!(xid.contains("NVLink 5") && xid.contains("reset the GPU"), "{xid}");
    let uuid = machine["gpus"][1]["uuid"].as_str().unwrap();
    let planned = gpu(&sandbox, "h100x8", &["mig", "plan", "19,19", "--gpus", uuid, "-o", "json"]).with_code(3).json();
    assert_eq!(
        (&planned["changes"][0]["gpu"], planned["changes"][0]["create"].as_array().unwrap().len()),
        (&1.into(), 2)
    );
    let missing = gpu(&sandbox, "h100x8", &["mig", "plan", "1g.10gb", "--gpus", "0,42"]).with_code(1);
    assert!(missing.message().contains("there is no GPU 42"), "{missing:?}");
    let top = sandbox.run(&["top", "--fixture", "h100x8", "--once"]).with_code(0).stdout;
    assert!(top.contains("SIMULATED") && top.contains("H100") && top.contains("python3"), "{top}");
}

#[test]
fn a_copy_of_the_binary_alone_simulates_gpus() {
    let sandbox = Sandbox::new();
    let empty = tempfile::TempDir::new().unwrap();
    let copy = empty.path().join("slipway");
    std::fs::copy(env!("CARGO_BIN_EXE_slipway"), &copy).unwrap();
    let run = |words: &[&str]| {
        let mut command = sandbox.command_of(&copy, words);
        command.current_dir(empty.path());
        Running::start(command).wait()
    };
    let machine = run(&["gpu", "ls", "--fixture", "h100x8", "-o", "json"]).with_code(0).json();
    assert!(machine["simulated"] == true && machine["gpus"].as_array().unwrap().len() == 8, "{machine}");
    assert!(run(&["gpu", "topology", "--fixture", "h100x8"]).with_code(0).stdout.contains("NV18"));
    let planned = run(&["gpu", "mig", "plan", "7x1g.10gb", "--gpus", "0", "--fixture", "a100x8"]).with_code(3);
    assert!(planned.stdout.contains("1g.10gb"), "{planned:?}");
    assert!(run(&["top", "--fixture", "h100x8", "--once"]).with_code(0).stdout.contains("SIMULATED"));
    let unknown = run(&["gpu", "ls", "--fixture", "no-such"]).with_code(1);
    assert!(unknown.message().contains("there is no fixture 'no-such'"), "{unknown:?}");
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 1, "nothing is written beside the binary");
}

/// A fixture of a library from `SLIPWAY_NVML_LIB`, which cargo built beside this test.
#[test]
fn a_library_file_replaces_the_simulator_of_the_binary() {
    let mut sandbox = Sandbox::new();
    let library = std::env::current_exe().unwrap().with_file_name("libslipway_fake_nvml.so");
    sandbox.set("SLIPWAY_NVML_LIB", library.to_str().unwrap());
    assert_eq!(gpu(&sandbox, "t4", &["ls", "-o", "json"]).with_code(0).json()["simulated"], true);
    sandbox.set("SLIPWAY_NVML_LIB", "/no/such/lib.so");
    let missing = gpu(&sandbox, "t4", &["ls"]).with_code(1);
    assert!(missing.message().contains("NVML cannot be loaded from /no/such/lib.so"), "{missing:?}");
}

#[test]
fn mig_changes_are_confirmed_and_keep_common_instances() {
    let mut sandbox = Sandbox::new();
    sandbox.set("SLIPWAY_FAKE_NVML_STATE", &sandbox.folder().join("mig.json").display().to_string());
    let run = |words: &[&str]| gpu(&sandbox, "a100x8", words);
    let layout = "3x1g.10gb + 1x3g.40gb";
    run(&["mig", "plan", layout, "--gpus", "0"]).with_code(3);
    run(&["mig", "apply", layout, "--gpus", "0"]).with_code(3);
    run(&["mig", "apply", layout, "--gpus", "0", "--dry-run", "--yes"]).with_code(3);
    // The plan is shown before the prompt, even if the output goes to a file.
    let (mut user, terminal) = terminal();
    user.write_all(b"n\n").unwrap();
    let mut prompted =
        sandbox.command(&["gpu", "mig", "apply", layout, "--gpus", "0", "--fixture", "a100x8", "-o", "plan.json"]);
    prompted.stdin(terminal);
    let prompted = Running::start(prompted).wait().with_code(3);
    assert!(prompted.stdout.is_empty() && prompted.stderr.contains("1g.10gb"), "{prompted:?}");
    assert!(prompted.stderr.contains("Change the layout? [y/N]"), "{prompted:?}");
    serde_json::from_str::<Value>(&sandbox.read("plan.json")).unwrap();
    let before = run(&["mig", "ls", "-o", "json"]).with_code(0).json();
    assert_eq!(before[0]["enabled"], false, "neither a dry run nor a declined prompt changes anything");
    let devices = |sandbox: &Sandbox| -> Vec<Value> {
        let machine = gpu(sandbox, "a100x8", &["ls", "-o", "json"]).with_code(0).json();
        machine["gpus"][0]["mig"]["devices"].as_array().unwrap().clone()
    };
    let uuids = |devices: &[Value]| devices.iter().map(|d| d["uuid"].to_string()).collect::<BTreeSet<_>>();
    run(&["mig", "apply", layout, "--gpus", "0", "--yes"]).with_code(0);
    let before = devices(&sandbox);
    let mut profiles: Vec<_> = before.iter().map(|d| d["profile"].as_str().unwrap()).collect();
    profiles.sort_unstable();
    assert_eq!(profiles, ["1g.10gb", "1g.10gb", "1g.10gb", "3g.40gb"]);
    run(&["mig", "apply", "4x1g.10gb + 1x3g.40gb", "--gpus", "0", "--yes"]).with_code(0);
    assert!(uuids(&before).is_subset(&uuids(&devices(&sandbox))), "instances in both layouts are kept");
    let exported = run(&["mig", "export"]).with_code(0).stdout;
    sandbox.write("config.yaml", &exported);
    run(&["mig", "plan", "--config", "config.yaml"]).with_code(0);
    let refused = run(&["mig", "apply", "2x4g.40gb", "--gpus", "0", "--yes"]).with_code(1);
    assert!(refused.message().contains("the closest layout that fits is 1x4g.40gb"), "{refused:?}");
    let busy = Sandbox::new();
    let refused = gpu(&busy, "h100x8", &["mig", "apply", "1g.10gb", "--gpus", "0", "--yes"]).with_code(1);
    assert!(refused.message().contains("in use by pid 70001"), "{refused:?}");
}

#[test]
fn doctor_reports_gpu_and_runtime_problems() {
    let mut sandbox = Sandbox::new();
    sandbox.set("SLIPWAY_GPU_FIXTURE", "h100x8");
    let healthy = sandbox.run(&["doctor", "-o", "json"]).with_code(0);
    assert!(healthy.stdout.contains("SIMULATED"), "{healthy:?}");
    sandbox.set("SLIPWAY_GPU_FIXTURE", "broken");
    let found = sandbox.run(&["doctor"]).with_code(3);
    assert!(found.stdout.contains("fallen off the bus"), "{found:?}");
    sandbox.set("SLIPWAY_GPU_FIXTURE", "h100x8");
    sandbox.set("SLIPWAY_RUNTIME", "ort");
    sandbox.set("SLIPWAY_ONNXRUNTIME", "/no/such/lib.so");
    let unhealthy = sandbox.run(&["doctor"]).with_code(3);
    assert!(unhealthy.stdout.contains("PROBLEM"), "{unhealthy:?}");
}

#[test]
fn fit_reads_a_model_and_says_where_it_fits() {
    let sandbox = Sandbox::new();
    let fit = |words: &[&str]| sandbox.run(&[&["gpu", "fit"], words].concat());
    // The output names the assumption about the cache.
    for (kv, gib, bytes) in [(&[][..], 4.3, 1), (&["--kv-dtype", "bf16"], 8.6, 2)] {
        let words = [&["--params", "671b", "--dtype", "fp8", "--seq", "131072", "-o", "json"][..], kv].concat();
        let done = fit(&words).with_code(0);
        assert_eq!(done.message().contains("the key-value cache is in fp8 as the weights"), kv.is_empty(), "{done:?}");
        let estimate = done.json();
        let cache = estimate["parts"].as_array().unwrap().iter().find(|p| p["what"] == "key-value cache").unwrap();
        assert!((cache["bytes"].as_f64().unwrap() / f64::from(1 << 30) - gib).abs() < 0.05, "{cache}");
        assert!(
            cache["numbers"].as_str().unwrap().contains(&format!("61 layers x 131072 x 576 x {bytes} B")),
            "{cache}"
        );
    }
    let priced = fit(&["--params", "8b", "--card", "H200", "--price", "3.50"]).with_code(0).stdout;
    assert!(priced.contains("$/H") && priced.contains("3.50"), "{priced}");
    let refused = fit(&["--params", "8b", "--prices", "no-such.yaml"]);
    assert!(refused.code != 0 && refused.message().contains("no-such.yaml"), "{refused:?}");

    let folder = tempfile::TempDir::new().unwrap();
    let config = "{\"model_type\": \"llama\", \"hidden_size\": 4096, \"num_hidden_layers\": 32, \"num_attention_heads\": 32, \"num_key_value_heads\": 8, \"intermediate_size\": 14336, \"vocab_size\": 128256}";
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let path = folder.path().to_str().unwrap();
    let shown = fit(&["--config", path, "--card", "H100 80GB HBM3", "--explain"]).with_code(0).stdout;
    assert!(shown.contains("8.0b parameters") && shown.contains("32 layers x 4096 x 2 x 8 x 128 x 2 B"), "{shown}");
    std::fs::write(folder.path().join("config.json"), "{\"hidden_size\": 4096}").unwrap();
    let refused = fit(&["--config", path]).with_code(1);
    assert!(refused.message().contains("num_hidden_layers is missing"), "{refused:?}");

    let nothing = fit(&["--params", "405b", "--card", "Tesla T4", "--gpus", "8"]).with_code(3);
    assert!(nothing.stderr.contains("it fits on nothing") && nothing.stderr.contains("8 x Tesla T4"), "{nothing:?}");
    fit(&["--params", "7b", "--train", "adam", "--dtype", "int8"]).with_code(1);
    fit(&["--params", "7b", "--checkpointing"]).with_code(1);
    fit(&[]).with_code(1);
}

/// The figures of another machine are never shown in place of those that were requested.
#[test]
fn roofline_refuses_what_it_does_not_know() {
    let sandbox = Sandbox::new();
    let roofline = |words: &[&str]| sandbox.run(&[&["gpu", "roofline"], words].concat());
    let op = "gemm:512,512,512,fp32";
    roofline(&["--fixture", "nosuch", "--op", op]).with_code(1);
    roofline(&["--card", "nosuch", "--op", op]).with_code(1);
    roofline(&["--card", "A4000", "--op", "decode:model=7b,dtype=fp3"]).with_code(1);
    roofline(&["--card", "A4000", "--op", "decode:model=70b,tp=3"]).with_code(1);
    let shown =
        roofline(&["--fixture", "h100x8", "--op", "decode:model=47b,batch=1", "-o", "json"]).with_code(0).json();
    let rate = shown["work"][0]["tokens_per_second"].as_f64().unwrap();
    assert!((rate - 130.0).abs() < 4.0, "{shown}");
}

#[test]
fn model_versions_of_the_registry_are_estimated() {
    let server = Server::start();
    let config = json!({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "torch_dtype": "bfloat16"});
    let created = server.post("/api/2.0/mlflow/runs/create", &json!({"experiment_id": "0"})).with_status(200);
    let run = created["run"]["info"]["run_id"].as_str().unwrap();
    let folder = created["run"]["info"]["artifact_uri"].as_str().unwrap().strip_prefix("mlflow-artifacts:/").unwrap();
    let upload = |file: &str, bytes: &[u8]| {
        server.call("PUT", &format!("/api/2.0/mlflow-artifacts/artifacts/{folder}/{file}"), bytes).with_status(200);
    };
    upload("good/config.json", config.to_string().as_bytes());
    upload("empty/weights.bin", b"x");
    for path in ["good", "empty"] {
        server.run(&["model", "register", "llm", "--run", run, "--path", path]).with_code(0);
    }
    let alias = json!({"name": "llm", "alias": "champion", "version": "1"});
    server.post("/api/2.0/mlflow/registered-models/alias", &alias).with_status(200);
    let fit = |uri: &str| server.run(&["gpu", "fit", "--config", uri, "--seq", "32768", "-o", "json"]);
    for uri in ["models:/llm/1", "models:/llm@champion"] {
        let estimate = fit(uri).with_code(0).json();
        let cache = estimate["parts"].as_array().unwrap().iter().find(|p| p["what"] == "key-value cache").unwrap();
        // Qwen2.5 7B: 28 layers x 2 x 4 x 128 x 2 B x 32,768 tokens = 1.75 GiB.
        assert_eq!(cache["bytes"].as_f64(), Some(1.75 * 1_073_741_824.0), "{cache}");
        assert!(
            estimate["shape"]["source"].as_str().unwrap().contains(&format!("config.json of {uri}")),
            "{}",
            estimate["shape"]
        );
    }
    for (uri, expected) in [
        ("models:/llm/2", "models:/llm/2 has no config.json among the artifacts at"),
        ("models:/llm/9", "llm"),
        ("models:/other/1", "other"),
        ("models:/llm", "expected models:/NAME/VERSION or models:/NAME@ALIAS"),
    ] {
        let message = fit(uri).with_code(1).message();
        assert!(message.contains(expected), "{uri}: {message}");
    }
}
