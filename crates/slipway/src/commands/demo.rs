//! `demo`: the main job on real data, verified step by step.
//!
//! Python environment -> `slipway up` -> four trainings -> registry -> deployment -> 720 requests -> one table and
//! the lineage of one answer. Every step fails loudly; the exit code is 0 only if all of it was seen to work.

mod folder;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use slipway_core::home::Home;
use slipway_core::{Explain, units};
use slipway_exec::manifest::EnvVar;
use slipway_exec::{Manifest, Phase, Submitted};
use slipway_server::Addresses;
use slipway_server::auth::read_home_token;

use super::{Context, deploy, model, show};
use crate::Failure;
use crate::cli::Demo;
use crate::client::{Client, encode, running};
use crate::credentials::Sources;
use crate::output::{Table, say};

/// The user's code, as it stands in `examples/digits`.
const FILES: [(&str, &str); 4] = [
    ("requirements.txt", include_str!("../../../../examples/digits/requirements.txt")),
    ("train.py", include_str!("../../../../examples/digits/train.py")),
    ("query.py", include_str!("../../../../examples/digits/query.py")),
    ("deploy.yaml", include_str!("../../../../examples/digits/deploy.yaml")),
];
const ALGORITHMS: [&str; 4] = ["logreg", "svm", "forest", "mlp"];
/// Test images, each asked for over both protocols.
const IMAGES: usize = 360;

/// A step that could not be verified.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {what}")]
struct DemoError {
    step: &'static str,
    what: String,
}

impl Explain for DemoError {
    fn code(&self) -> &'static str {
        "demo.failed"
    }
}

fn failed(step: &'static str, what: impl std::fmt::Display) -> Failure {
    DemoError { step, what: what.to_string() }.into()
}

fn verify(step: &'static str, holds: bool, what: impl std::fmt::Display) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(failed(step, what)) }
}

/// What a training printed.
#[derive(Debug, Deserialize)]
struct Trained {
    run_id: String,
    version: String,
    algorithm: String,
    accuracy: f64,
}

/// One request that `query.py` sent.
#[derive(Debug, Deserialize)]
struct Record {
    protocol: String,
    image: usize,
    version: String,
    label: i64,
    us: f64,
}

#[derive(Debug, Deserialize)]
struct Asked {
    truth: Vec<i64>,
    records: Vec<Record>,
}

/// The platform's process; stopped when dropped unless it is to stay.
struct Platform {
    child: Child,
    addresses: Addresses,
    keep: bool,
}

impl Platform {
    fn stop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // A process that is gone already is what was wanted.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait(); // Its exit status says nothing: it was told to end.
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        if !self.keep {
            self.stop();
        }
    }
}

pub(super) async fn demo(context: &Context, options: Demo) -> Result<(), Failure> {
    let started = Instant::now();
    // The usual state folder whatever --home says, so that a demo's folder is known again.
    let state = Home::at(Home::default_path());
    let dir =
        folder::open(&options.dir, &state).map_err(|e| failed("folder", format!("{}: {e}", options.dir.display())))?;
    let work = dir.join("work");
    write_files(&work)?;
    let mut step = Steps { started, number: 0, quiet: context.global.quiet };

    step.begin("Python environment for the training code");
    let python = environment(&dir, &options.python, &work)?;

    step.begin("slipway up");
    let mut platform = start(&dir, &python, &options)?;
    let mut sources = Sources::of(&context.config, context.global.insecure)?;
    sources.home = Home::at(dir.join("home"));
    let client = Client::own(platform.addresses.clone(), &sources)?;
    step.note(format_args!(
        "UI and API at http://{}, state in {}",
        platform.addresses.control,
        dir.join("home").display()
    ));

    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    step.begin(&format!(
        "four trainings as submitted runs, {} at once, logged with the official MLflow client",
        cores.min(4)
    ));
    // Made first: of several MLflow clients that make the same experiment at once, all but one log to `Default`.
    let made: Value = client.post("/api/2.0/mlflow/experiments/create", &json!({ "name": "digits" })).await?;
    let trained = train(&step, &dir, &python, &client).await?;

    step.begin("registry: champion and challenger by test accuracy");
    promote(&step, &client, &trained, &made["experiment_id"]).await?;

    step.begin("deployment: traffic split 90/10");
    let manifest = FILES[3].1.to_owned();
    deploy::apply(&client, manifest, false).await?;
    let status: Value = client.get("/api/v1/deployments/digits").await?;
    verify("deployment", status["ready"] == true, format_args!("not ready: {status}"))?;

    step.begin("all held-out test images through the gateway, REST and gRPC, with the official tritonclient");
    let asked = query(&dir, &python, &platform.addresses)?;

    step.begin("verification");
    let table = report(&client, &trained, &asked, &status).await?;
    say("");
    print!("{table}");
    lineage(&client, &asked).await?;

    say(format_args!("\nEverything was verified in {}.", units::micros(started.elapsed().as_micros() as f64)));
    if options.keep {
        platform.keep = true;
        let home = dir.join("home").display().to_string();
        let a = &platform.addresses;
        say(format_args!("The platform stays up: {}  (stop it: slipway down --home {home})", a.control_url()));
        say("Try next:");
        say(format_args!("  slipway token --ui --home {home}     # a link that opens the UI signed in"));
        say(format_args!("  slipway deploy split digits champion=50 challenger=50 --home {home}"));
        say(format_args!("  slipway run ls --experiment digits --order-by 'metrics.accuracy DESC' --home {home}"));
        say(format_args!(
            "  curl -H \"authorization: Bearer $(slipway token --home {home})\" {}/v2/models/digits",
            a.inference_url()
        ));
    } else {
        platform.stop();
        say("Try next: `make demo KEEP=1` (or `slipway demo --keep`) leaves the platform and its UI up.");
    }
    Ok(())
}

/// Numbered lines with the time since the start.
struct Steps {
    started: Instant,
    number: usize,
    quiet: bool,
}

impl Steps {
    fn begin(&mut self, what: &str) {
        self.number += 1;
        if !self.quiet {
            say(format_args!("[{:5.1} s] {}. {what}", self.started.elapsed().as_secs_f64(), self.number));
        }
    }
    fn note(&self, what: impl std::fmt::Display) {
        if !self.quiet {
            say(format_args!("             {what}"));
        }
    }
}

fn write_files(work: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(work).map_err(|e| failed("folder", e))?;
    for (name, text) in FILES {
        std::fs::write(work.join(name), text).map_err(|e| failed("folder", format!("{name}: {e}")))?;
    }
    Ok(())
}

/// The virtual environment with the requirements; made once, and again when the requirements change.
fn environment(dir: &Path, python: &str, work: &Path) -> Result<PathBuf, Failure> {
    const STEP: &str = "Python environment";
    let place = dir.join("venv");
    let own = place.join("bin/python");
    let mark = place.join("slipway-requirements.txt");
    let requirements = FILES[0].1;
    if own.exists() && std::fs::read_to_string(&mark).is_ok_and(|text| text == requirements) {
        return Ok(own);
    }
    let packages = requirements.lines().filter(|l| !l.starts_with('#')).collect::<Vec<_>>().join(" ");
    say(format_args!("             installing into {}: {packages}", place.display()));
    let run = |program: &Path, args: &[&str]| -> Result<(), Failure> {
        let out = Command::new(program).args(args).output();
        let out = out.map_err(|e| failed(STEP, format!("{}: {e}", program.display())))?;
        let errors = String::from_utf8_lossy(&out.stderr);
        verify(STEP, out.status.success(), format_args!("{} {}: {}", program.display(), args.join(" "), errors.trim()))
    };
    let (venv, list) = (place.display().to_string(), work.join("requirements.txt").display().to_string());
    run(Path::new(python), &["-m", "venv", &venv])?;
    run(&own, &["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", &list])?;
    std::fs::write(&mark, requirements).map_err(|e| failed(STEP, e))?;
    Ok(own)
}

/// The usual port, or any free one when it is taken.
fn port(usual: u16) -> String {
    let free = TcpListener::bind(("127.0.0.1", usual)).is_ok();
    format!("127.0.0.1:{}", if free { usual } else { 0 })
}

fn start(dir: &Path, python: &Path, options: &Demo) -> Result<Platform, Failure> {
    const STEP: &str = "slipway up";
    let home = Home::at(dir.join("home"));
    if let Some(other) = running(&home) {
        return Err(failed(
            STEP,
            format_args!(
                "process {} still serves {}; stop it with `slipway down --home {}`",
                other.pid,
                home.root().display(),
                home.root().display()
            ),
        ));
    }
    // Every demo tells its own story: what an earlier one kept is cleared.
    if home.root().exists() {
        std::fs::remove_dir_all(home.root()).map_err(|e| failed(STEP, e))?;
    }
    let log = dir.join("slipway.log");
    let out = std::fs::File::create(&log).map_err(|e| failed(STEP, e))?;
    let errors = out.try_clone().map_err(|e| failed(STEP, e))?;
    let program = std::env::current_exe().map_err(|e| failed(STEP, e))?;
    let environment = python.parent().and_then(Path::parent).unwrap_or(dir);
    let begun = Instant::now();
    let mut command = Command::new(program);
    command
        .args(["up", "--listen", &port(7070), "--inference-listen", &port(7071), "--grpc-listen", &port(7072)])
        .args(["--runtime", &options.runtime, "--home"])
        .arg(home.root())
        .env("VIRTUAL_ENV", environment)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(errors);
    {
        use std::os::unix::process::CommandExt;
        command.process_group(0);
    }
    let mut child = command.spawn().map_err(|e| failed(STEP, e))?;
    while begun.elapsed() < Duration::from_secs(15) {
        if let Some(addresses) = running(&home) {
            return Ok(Platform { child, addresses, keep: false });
        }
        if child.try_wait().is_ok_and(|ended| ended.is_some()) {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill(); // It may have ended by itself.
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    Err(failed(STEP, format_args!("it did not start; {}:\n{}", log.display(), text.trim())))
}

/// The four trainings, as submitted runs of the platform: it carries them out, tracks them, and keeps what they print.
async fn train(step: &Steps, dir: &Path, python: &Path, client: &Client) -> Result<Vec<Trained>, Failure> {
    const STEP: &str = "training";
    let absolute =
        |path: &Path| std::path::absolute(path).map(|p| p.display().to_string()).map_err(|e| failed(STEP, e));
    for algorithm in ALGORITHMS {
        let mut run = Manifest::of(format!("digits-{algorithm}"), [&absolute(python)?, "train.py", algorithm]);
        run.spec.experiment = Some("digits".into());
        run.spec.working_dir = Some(absolute(&dir.join("work"))?);
        run.spec.active_deadline_seconds = Some(600);
        for (name, value) in [("MLFLOW_DISABLE_TELEMETRY", "1"), ("OMP_NUM_THREADS", "1")] {
            run.spec.env.push(EnvVar { name: name.into(), value: Some(value.into()), value_from: None });
        }
        client.post_text::<Submitted>("/api/v1/runs", json!(run).to_string()).await?;
    }
    let mut trained = Vec::new();
    for algorithm in ALGORITHMS {
        let path = format!("/api/v1/runs/default/digits-{algorithm}");
        let run = loop {
            let run: Submitted = client.get(&path).await?;
            if run.status.phase.is_final() {
                break run;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let mut log = Vec::new();
        client.follow(&format!("{path}/log"), |bytes| log.extend_from_slice(bytes)).await?;
        let text = String::from_utf8_lossy(&log);
        let tail: Vec<&str> = text.lines().rev().take(12).collect();
        let shown = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
        verify(
            STEP,
            run.status.phase == Phase::Succeeded,
            format_args!("{algorithm}: {} {}\n{shown}", run.status.reason, run.status.message),
        )?;
        let result: Trained = text
            .lines()
            .rev()
            .find_map(|line| serde_json::from_str(line).ok())
            .ok_or_else(|| failed(STEP, format_args!("{algorithm} printed no result:\n{shown}")))?;
        verify(
            STEP,
            result.run_id == run.status.run_id,
            format_args!("{algorithm} tracked itself as {}, and was submitted as {}", result.run_id, run.status.run_id),
        )?;
        let took = run.status.start_time.zip(run.status.completion_time).map_or(0, |(from, to)| to.0 - from.0);
        step.note(format_args!(
            "{algorithm:7} accuracy {:.4} in {}",
            result.accuracy,
            units::micros(took as f64 * 1000.0)
        ));
        trained.push(result);
    }
    Ok(trained)
}

/// Sets the aliases, after checking that the server holds what the trainings say they logged.
async fn promote(step: &Steps, client: &Client, trained: &[Trained], experiment: &Value) -> Result<(), Failure> {
    const STEP: &str = "registry";
    let versions = model::versions(client, "digits").await?;
    for t in trained {
        let known = versions.iter().any(|v| v["version"] == t.version.as_str() && v["run_id"] == t.run_id.as_str());
        verify(STEP, known, format_args!("version {} of run {} is not registered", t.version, t.run_id))?;
        let run: Value = client.get(&format!("/api/2.0/mlflow/runs/get?run_id={}", encode(&t.run_id))).await?;
        let run = &run["run"];
        verify(
            STEP,
            run["info"]["experiment_id"] == *experiment,
            format_args!("run {} is in another experiment", t.run_id),
        )?;
        let metrics = run["data"]["metrics"].as_array().into_iter().flatten();
        let logged = metrics.filter(|m| m["key"] == "accuracy").find_map(|m| m["value"].as_f64());
        verify(
            STEP,
            logged == Some(t.accuracy),
            format_args!("run {} has accuracy {logged:?}, not {}", t.run_id, t.accuracy),
        )?;
        let datasets = run["inputs"]["dataset_inputs"].as_array().map_or(0, Vec::len);
        verify(
            STEP,
            datasets == 2 && run["info"]["status"] == "FINISHED",
            format_args!("run {} is not complete", t.run_id),
        )?;
        let files: Value =
            client.get(&format!("/api/2.0/mlflow/artifacts/list?run_id={}&path=plots", encode(&t.run_id))).await?;
        let picture =
            files["files"].as_array().into_iter().flatten().any(|f| f["path"] == "plots/confusion_matrix.png");
        verify(STEP, picture, format_args!("run {} has no confusion matrix", t.run_id))?;
    }
    let mut ranked: Vec<&Trained> = trained.iter().collect();
    ranked.sort_by(|a, b| b.accuracy.total_cmp(&a.accuracy));
    for (alias, best) in ["champion", "challenger"].into_iter().zip(&ranked) {
        model::promote(client, "digits", &best.version, alias).await?;
        step.note(format_args!("{alias} = version {} ({}, {:.4})", best.version, best.algorithm, best.accuracy));
    }
    Ok(())
}

fn query(dir: &Path, python: &Path, addresses: &Addresses) -> Result<Asked, Failure> {
    const STEP: &str = "requests";
    let token = read_home_token(&Home::at(dir.join("home"))).map_err(|e| failed(STEP, e))?;
    let out = Command::new(python)
        .args(["query.py", &addresses.inference.to_string(), &addresses.grpc.to_string()])
        .current_dir(dir.join("work"))
        .env("MLFLOW_DISABLE_TELEMETRY", "1")
        .env("SLIPWAY_TOKEN", token)
        .output()
        .map_err(|e| failed(STEP, e))?;
    verify(STEP, out.status.success(), String::from_utf8_lossy(&out.stderr).trim())?;
    let asked: Asked = serde_json::from_slice(&out.stdout).map_err(|e| failed(STEP, e))?;
    verify(
        STEP,
        asked.records.len() == 2 * IMAGES,
        format_args!("{} answers, expected {}", asked.records.len(), 2 * IMAGES),
    )?;
    Ok(asked)
}

fn percentile(sorted: &[f64], q: f64) -> f64 {
    let at = ((sorted.len() as f64 - 1.0) * q).round() as usize;
    sorted.get(at).copied().unwrap_or(0.0)
}

/// The table of what each version did, checked against what its training predicted for the same images.
async fn report(client: &Client, trained: &[Trained], asked: &Asked, before: &Value) -> Result<Table, Failure> {
    const STEP: &str = "verification";
    let mut by_version: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in &asked.records {
        by_version.entry(&record.version).or_default().push(record);
    }
    verify(STEP, by_version.len() == 2, format_args!("{} versions answered, expected 2", by_version.len()))?;
    let mut table =
        Table::new(&["VERSION", "ALGORITHM", "ACCURACY", "CORRECT", "REQUESTS", "REST", "GRPC", "P50", "P99", "SHARE"]);
    for (version, records) in &by_version {
        let t = trained
            .iter()
            .find(|t| t.version == *version)
            .ok_or_else(|| failed(STEP, format_args!("version {version} answered, which nobody trained")))?;
        let path = format!("/get-artifact?run_id={}&path=predictions.json", encode(&t.run_id));
        let predictions: Value = client.get(&path).await?;
        let wrong = records.iter().find(|r| predictions["predicted"][r.image] != r.label);
        if let Some(r) = wrong {
            return Err(failed(
                STEP,
                format_args!(
                    "version {version} gave {} for image {} over {}, its training says {}",
                    r.label, r.image, r.protocol, predictions["predicted"][r.image]
                ),
            ));
        }
        let correct = records.iter().filter(|r| asked.truth.get(r.image) == Some(&r.label)).count();
        let mut times: Vec<f64> = records.iter().map(|r| r.us).collect();
        times.sort_by(f64::total_cmp);
        let over = |protocol: &str| records.iter().filter(|r| r.protocol == protocol).count().to_string();
        table.row(vec![
            (*version).to_owned(),
            t.algorithm.clone(),
            format!("{:.4}", correct as f64 / records.len() as f64),
            format!("{correct}/{}", records.len()),
            records.len().to_string(),
            over("rest"),
            over("grpc"),
            units::micros(percentile(&times, 0.50)),
            units::micros(percentile(&times, 0.99)),
            format!("{:.1}%", 100.0 * records.len() as f64 / asked.records.len() as f64),
        ]);
    }
    // The same request id always finds the same version, over both protocols and at any time, so the split is
    // judged by what the ids' hashes allow: 720 draws with p = 0.1 lie within 5 standard deviations.
    let smaller = by_version.values().map(Vec::len).min().unwrap_or(0);
    verify(STEP, (32..=112).contains(&smaller), format_args!("the challenger got {smaller} of 720 requests"))?;
    let after: Value = client.get("/api/v1/deployments/digits").await?;
    let count = |v: &Value| -> u64 {
        v["variants"].as_array().into_iter().flatten().filter_map(|v| v["stats"]["requests"].as_u64()).sum()
    };
    let counted = count(&after) - count(before);
    verify(STEP, counted == asked.records.len() as u64, format_args!("the gateway counted {counted} requests"))?;
    Ok(table)
}

/// The lineage of the last answer, down to the digest of the data.
async fn lineage(client: &Client, asked: &Asked) -> Result<(), Failure> {
    let last = asked.records.last().ok_or_else(|| failed("lineage", "no answers"))?;
    let id = format!("{}-{}", last.protocol, last.image);
    let found: Value = client.get(&format!("/api/v1/requests/{}/lineage", encode(&id))).await?;
    let steps = show::chain(&found);
    let whole = steps.len() >= 5 && steps.iter().all(|s| s[1] != "-" && !s[1].is_empty());
    verify("lineage", whole, format_args!("the chain of request {id} has a gap: {steps:?}"))?;
    let mut table = Table::new(&["LINEAGE", "WHICH", "ABOUT"]);
    steps.into_iter().for_each(|s| table.row(s.to_vec()));
    print!("\n{table}");
    Ok(())
}
