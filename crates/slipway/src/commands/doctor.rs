//! `slipway doctor`: checks this machine and the state folder, with a remedy for each problem.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use slipway_core::home::Home;
use slipway_core::units;
use slipway_gpu::inventory::{Inventory, Severity};
use slipway_gpu::{GpuError, pci, stack, vendor};
use slipway_serve::runtime::Runtime;

use super::Context;
use crate::Failure;
use crate::output::{Table, print, print_note};
use crate::running_server::running_server;

/// The result of one check.
#[derive(Debug, Serialize)]
struct Check {
    what: &'static str,
    ok: bool,
    found: String,
    /// How to fix the problem; empty if `ok`.
    remedy: String,
}

/// Minimum free disk space, in bytes, below which `doctor` reports a problem.
const MIN_FREE_BYTES: u64 = 1 << 30;

/// Checks the GPUs: one line if there is none, else every missing software layer and every finding. Tracking and serving need no GPU, so
/// its absence is a problem only if a GPU is `required` or `fixture` names simulated ones. `root` is the root folder of the machine.
fn gpus(fixture: Option<&str>, inventory: &Result<Inventory, GpuError>, root: &Path, required: bool) -> Vec<Check> {
    let gpus = |ok, found: String, remedy: String| Check { what: "GPUs", ok, found, remedy };
    if let (Some(name), Err(error)) = (fixture, inventory) {
        let remedy = format!("correct or unset {}, which is '{name}'", slipway_core::env::GPU_FIXTURE);
        return vec![gpus(false, error.to_string(), remedy)];
    }
    // A display of AMD without its library is most likely the processor's own, which computes nothing.
    let on_bus =
        pci::scan(&root.join("sys")).iter().any(|d| d.is_gpu() && (d.vendor == pci::NVIDIA || d.is_accelerator()));
    if !on_bus && inventory.as_ref().map_or(true, |i| i.gpus.is_empty()) {
        let remedy =
            "seat the card, or pass it through to the virtual machine; without a GPU: slipway gpu ls --fixture h100x8";
        let remedy = if required { remedy } else { "" };
        return vec![gpus(!required, "no GPU of NVIDIA or AMD in this machine".into(), remedy.into())];
    }
    let mut checks = Vec::new();
    let simulated = inventory.as_ref().is_ok_and(|i| i.simulated);
    if !simulated {
        let missing = stack::layers(root, inventory).into_iter().filter(|l| l.ok == Some(false));
        checks.extend(missing.map(|l| Check { what: l.name, ok: false, found: l.found, remedy: l.remedy }));
    }
    if let Ok(inventory) = inventory {
        checks.extend(state(inventory));
    }
    checks
}

/// The number of GPUs, and every finding.
fn state(inventory: &Inventory) -> Vec<Check> {
    let note = if inventory.simulated { " (SIMULATED)" } else { "" };
    // AMD's library reports no version of NVML.
    let vendor = if inventory.nvml.is_empty() { " of AMD" } else { "" };
    let found = format!("{}{vendor}, driver {}{note}", inventory.gpus.len(), inventory.driver);
    let mut checks = vec![Check { what: "GPUs", ok: true, found, remedy: String::new() }];
    let problems = inventory.findings().filter(|(_, f)| f.severity > Severity::Note);
    checks.extend(problems.map(|(gpu, f)| Check {
        what: "GPU",
        ok: false,
        found: format!("GPU {gpu}{vendor}: {}", f.what),
        remedy: f.remedy.clone(),
    }));
    checks
}

pub(super) async fn doctor(context: &Context, gpu: bool) -> Result<(), Failure> {
    let home = Home::at(context.config.get("home").unwrap_or_default());
    let mut checks = Vec::new();
    let mut add = |what, ok, found: String, remedy: &str| {
        checks.push(Check { what, ok, found, remedy: if ok { String::new() } else { remedy.to_owned() } });
    };

    let path = home.root().display().to_string();
    let usable = home.create();
    let found = match &usable {
        Ok(()) => path.clone(),
        Err(e) => format!("{path}: {e}"),
    };
    add("state folder", usable.is_ok(), found, "check its owner, or choose another with --home DIR");

    if let Ok(space) = rustix::fs::statvfs(home.root()) {
        let free = space.f_bavail * space.f_frsize;
        add(
            "free space",
            free > MIN_FREE_BYTES,
            units::bytes(free),
            "free disk space, or choose another disk with --home DIR",
        );
    }

    let server = running_server(&home);
    let found =
        server.as_ref().map_or("not running".to_owned(), |a| format!("process {} at {}", a.pid, a.control_url()));
    add("server", true, found, "");

    match context.client().await {
        Ok(client) => {
            let checked: Result<Value, _> = client.get("/api/v1/integrity").await;
            let (ok, found) = match checked {
                Ok(v) => (v["result"] == "ok", v["result"].as_str().unwrap_or("no result").to_owned()),
                Err(e) => (false, e.to_string()),
            };
            add("database", ok, found, "restore slipway.db from a backup; `slipway explain store.sql`");
            if let Ok(status) = client.get::<Value>("/api/v1/status").await {
                let same = status["version"] == env!("CARGO_PKG_VERSION");
                let version = status["version"].as_str().unwrap_or_default().to_owned();
                add("server version", same, version, "restart the server with this binary: slipway down; slipway up");
            }
            if let Ok(deployments) = client.get::<Vec<Value>>("/api/v1/deployments").await {
                let ready = deployments.iter().filter(|d| d["ready"] == true).count();
                let found = format!("{ready} of {} ready", deployments.len());
                add("deployments", ready == deployments.len(), found, "slipway deploy show NAME shows why");
            }
        }
        Err(Failure::Error { message, hint, .. }) => add("database", false, message, &hint.unwrap_or_default()),
        Err(Failure::Findings) => {}
    }

    let chosen = context
        .config
        .get("runtime")
        .unwrap_or("auto")
        .parse()
        .and_then(|p| Runtime::choose(p, context.config.get("onnxruntime").map(std::path::Path::new)));
    let (ok, found) = match &chosen {
        Ok(runtime) => (true, runtime.about().to_owned()),
        Err(e) => (false, e.to_string()),
    };
    add("inference runtime", ok, found, "pip install onnxruntime, then SLIPWAY_ONNXRUNTIME=.../libonnxruntime.so");

    let python = std::process::Command::new("python3").arg("--version").output();
    let (ok, found) = match python {
        Ok(out) if out.status.success() => (true, String::from_utf8_lossy(&out.stdout).trim().to_owned()),
        _ => (false, "not found".to_owned()),
    };
    add("python (for training code)", ok, found, "apt install python3 python3-venv");

    let fixture = slipway_core::env::value(slipway_core::env::GPU_FIXTURE);
    let inventory = vendor::find(fixture.as_deref()).and_then(|library| library.inventory());
    checks.extend(gpus(fixture.as_deref(), &inventory, Path::new("/"), gpu));
    if let Some(second) = vendor::second(fixture.as_deref(), &inventory) {
        checks.extend(state(&second));
    }

    let problems = checks.iter().filter(|c| !c.ok).count();
    print(context.global.output.format, &checks, |checks| {
        let mut table = Table::new(&["CHECK", "STATE", "FOUND", "REMEDY"]);
        for c in checks {
            table.row(vec![
                c.what.into(),
                if c.ok { "ok" } else { "PROBLEM" }.into(),
                c.found.clone(),
                c.remedy.clone(),
            ]);
        }
        table
    });
    if problems == 0 {
        print_note("no problems found");
        Ok(())
    } else {
        print_note(format_args!("{problems} of {} checks found a problem", checks.len()));
        Err(Failure::Findings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_gpu_is_a_problem_only_if_it_is_required() {
        let folder = tempfile::tempdir().unwrap();
        let check = |fixture, required| {
            let mut checks = gpus(fixture, &Err(GpuError::NoGpu), folder.path(), required);
            assert_eq!(checks.len(), 1, "{checks:?}");
            checks.remove(0)
        };
        let absent = check(None, false);
        assert!(
            absent.ok && absent.found.contains("no GPU of NVIDIA or AMD") && absent.remedy.is_empty(),
            "{absent:?}"
        );
        for (fixture, required) in [(None, true), (Some("h100x8"), false)] {
            let missing = check(fixture, required);
            assert!(!missing.ok && !missing.remedy.is_empty(), "{missing:?}");
        }
    }
}
