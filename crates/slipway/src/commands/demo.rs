//! `slipway demo`: the complete workflow on real data, with every step verified.
//!
//! Python environment -> a version of the data -> `slipway up` -> four training runs -> registry -> deployment -> 720 requests -> a table and
//! the lineage of one response. Every failed step is an error; the exit code is 0 only if every verification succeeded.

mod data;
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
use slipway_exec::{DataVolume, Manifest, Phase, Submitted};
use slipway_server::Addresses;
use slipway_server::auth::read_home_token;

use super::{Context, deploy, model, show};
use crate::Failure;
use crate::cli::Demo;
use crate::client::{Client, encode};
use crate::credentials::Sources;
use crate::output::{Table, print_note, print_text};
use crate::running_server::running_server;

/// The files of `examples/digits`, which play the role of the user's code.
const FILES: [(&str, &str); 4] = [
    ("requirements.txt", include_str!("../../../../examples/digits/requirements.txt")),
    ("train.py", include_str!("../../../../examples/digits/train.py")),
    ("query.py", include_str!("../../../../examples/digits/query.py")),
    ("deploy.yaml", include_str!("../../../../examples/digits/deploy.yaml")),
];
const ALGORITHMS: [&str; 4] = ["logreg", "svm", "forest", "mlp"];
/// Number of test images; each is sent over both protocols.
const IMAGES: usize = 360;

/// A step that failed its verification.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {problem}")]
struct DemoError {
    step: &'static str,
    problem: String,
}

impl Explain for DemoError {
    fn code(&self) -> &'static str {
        "demo.failed"
    }
}

fn failed(step: &'static str, problem: impl std::fmt::Display) -> Failure {
    DemoError { step, problem: problem.to_string() }.into()
}

fn verify(step: &'static str, condition: bool, problem: impl std::fmt::Display) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(failed(step, problem)) }
}

/// The result that a training run printed as JSON.
#[derive(Debug, Deserialize)]
struct TrainingResult {
    run_id: String,
    version: String,
    algorithm: String,
    accuracy: f64,
}

/// One inference request of `query.py` and its result.
#[derive(Debug, Deserialize)]
struct Record {
    protocol: String,
    image: usize,
    version: String,
    label: i64,
    us: f64,
}

/// The output of `query.py`: the true labels of the images and all requests.
#[derive(Debug, Deserialize)]
struct QueryOutput {
    truth: Vec<i64>,
    records: Vec<Record>,
}

/// The server process of the demo; stopped when dropped unless `keep` is set.
struct Platform {
    child: Child,
    addresses: Addresses,
    keep: bool,
}

impl Platform {
    fn stop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // An error means that the process has already exited.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait(); // The exit status is irrelevant, because the process was terminated.
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
    // Use the default state folder regardless of --home, so that the demo folder is recognized in later runs.
    let state = Home::at(Home::default_path());
    let dir =
        folder::open(&options.dir, &state).map_err(|e| failed("folder", format!("{}: {e}", options.dir.display())))?;
    let work = dir.join("work");
    write_files(&work)?;
    let mut step = Steps { started, number: 0, quiet: context.global.quiet };

    step.begin("Python environment for the training code");
    let python = environment(&dir, &options.python, &work)?;

    step.begin("a version of the data: the digits in a project like DVC's");
    let version = data::version(&dir.join("project"), &python).map_err(|e| failed("data version", e))?;
    step.note(format_args!("{} at commit {}", data::FILE, version.rev.as_deref().unwrap_or_default()));

    step.begin("slipway up");
    let mut platform = start(&dir, &python, &options)?;
    let mut sources = Sources::from_config(&context.config, context.global.insecure)?;
    sources.home = Home::at(dir.join("home"));
    let client = Client::for_own_server(platform.addresses.clone(), &sources)?;
    step.note(format_args!(
        "UI and API at http://{}, state in {}",
        platform.addresses.control,
        dir.join("home").display()
    ));

    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    step.begin(&format!("four training runs, {} in parallel, logged with the official MLflow client", cores.min(4)));
    // Create the experiment first: if several MLflow clients create it concurrently, all but one log to `Default`.
    let created: Value = client.post("/api/2.0/mlflow/experiments/create", &json!({ "name": "digits" })).await?;
    let results = train(&step, &dir, &python, &version, &client).await?;

    step.begin("registry: champion and challenger by test accuracy");
    promote(&step, &client, &results, &created["experiment_id"]).await?;

    step.begin("deployment: traffic split 90/10");
    let manifest = FILES[3].1.to_owned();
    deploy::apply(&client, manifest, false).await?;
    let status: Value = client.get("/api/v1/deployments/digits").await?;
    verify("deployment", status["ready"] == true, format_args!("not ready: {status}"))?;

    step.begin("all held-out test images through the gateway, REST and gRPC, with the official tritonclient");
    let output = query(&dir, &python, &platform.addresses)?;

    step.begin("verification");
    let table = report(&client, &results, &output, &status).await?;
    print_note("");
    print_text(&table.to_string());
    lineage(&client, &output).await?;

    print_note(format_args!("\nEverything was verified in {}.", units::micros(started.elapsed().as_micros() as f64)));
    if options.keep {
        platform.keep = true;
        let home = dir.join("home").display().to_string();
        let a = &platform.addresses;
        print_note(format_args!(
            "The platform is still running: {}  (stop it: slipway down --home {home})",
            a.control_url()
        ));
        print_note("Try next:");
        print_note(format_args!("  slipway token --ui --home {home}     # a link that opens the UI signed in"));
        print_note(format_args!("  slipway deploy split digits champion=50 challenger=50 --home {home}"));
        print_note(format_args!(
            "  slipway run ls --experiment digits --order-by 'metrics.accuracy DESC' --home {home}"
        ));
        print_note(format_args!(
            "  curl -H \"authorization: Bearer $(slipway token --home {home})\" {}/v2/models/digits",
            a.inference_url()
        ));
    } else {
        platform.stop();
        print_note("Try next: `make demo KEEP=1` (or `slipway demo --keep`) keeps the platform and its UI running.");
    }
    Ok(())
}

/// Prints numbered steps with the time since the start.
struct Steps {
    started: Instant,
    number: usize,
    quiet: bool,
}

impl Steps {
    fn begin(&mut self, title: &str) {
        self.number += 1;
        if !self.quiet {
            print_note(format_args!("[{:5.1} s] {}. {title}", self.started.elapsed().as_secs_f64(), self.number));
        }
    }
    fn note(&self, text: impl std::fmt::Display) {
        if !self.quiet {
            print_note(format_args!("             {text}"));
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

/// Creates the virtual environment and returns its Python interpreter. An environment with the same requirements is reused.
fn environment(dir: &Path, python: &str, work: &Path) -> Result<PathBuf, Failure> {
    const STEP: &str = "Python environment";
    let folder = dir.join("venv");
    let interpreter = folder.join("bin/python");
    let marker = folder.join("slipway-requirements.txt");
    let requirements = FILES[0].1;
    if interpreter.exists() && std::fs::read_to_string(&marker).is_ok_and(|text| text == requirements) {
        return Ok(interpreter);
    }
    let packages = requirements.lines().filter(|l| !l.starts_with('#')).collect::<Vec<_>>().join(" ");
    print_note(format_args!("             installing into {}: {packages}", folder.display()));
    let run = |program: &Path, args: &[&str]| -> Result<(), Failure> {
        let out = Command::new(program).args(args).output();
        let out = out.map_err(|e| failed(STEP, format!("{}: {e}", program.display())))?;
        let errors = String::from_utf8_lossy(&out.stderr);
        verify(STEP, out.status.success(), format_args!("{} {}: {}", program.display(), args.join(" "), errors.trim()))
    };
    let (venv, list) = (folder.display().to_string(), work.join("requirements.txt").display().to_string());
    run(Path::new(python), &["-m", "venv", &venv])?;
    run(&interpreter, &["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", &list])?;
    std::fs::write(&marker, requirements).map_err(|e| failed(STEP, e))?;
    Ok(interpreter)
}

/// A listen address with the default port, or with port 0 (any free port) if it is in use.
fn listen_address(default: u16) -> String {
    let free = TcpListener::bind(("127.0.0.1", default)).is_ok();
    format!("127.0.0.1:{}", if free { default } else { 0 })
}

fn start(dir: &Path, python: &Path, options: &Demo) -> Result<Platform, Failure> {
    const STEP: &str = "slipway up";
    let home = Home::at(dir.join("home"));
    if let Some(other) = running_server(&home) {
        return Err(failed(
            STEP,
            format_args!(
                "process {} is still running for {}; stop it with `slipway down --home {}`",
                other.pid,
                home.root().display(),
                home.root().display()
            ),
        ));
    }
    // Start with an empty state folder; remove the state of an earlier demo.
    if home.root().exists() {
        std::fs::remove_dir_all(home.root()).map_err(|e| failed(STEP, e))?;
    }
    let log = dir.join("slipway.log");
    let out = std::fs::File::create(&log).map_err(|e| failed(STEP, e))?;
    let errors = out.try_clone().map_err(|e| failed(STEP, e))?;
    let program = std::env::current_exe().map_err(|e| failed(STEP, e))?;
    let environment = python.parent().and_then(Path::parent).unwrap_or(dir);
    let start = Instant::now();
    let mut command = Command::new(program);
    command
        .args([
            "up",
            "--listen",
            &listen_address(7070),
            "--inference-listen",
            &listen_address(7071),
            "--grpc-listen",
            &listen_address(7072),
        ])
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
    while start.elapsed() < Duration::from_secs(15) {
        if let Some(addresses) = running_server(&home) {
            return Ok(Platform { child, addresses, keep: false });
        }
        if child.try_wait().is_ok_and(|ended| ended.is_some()) {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill(); // An error means that the process has already exited.
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    Err(failed(STEP, format_args!("the server did not start; {}:\n{}", log.display(), text.trim())))
}

/// Submits the four training runs to the platform and returns their results, which are in their logs.
async fn train(
    step: &Steps,
    dir: &Path,
    python: &Path,
    version: &DataVolume,
    client: &Client,
) -> Result<Vec<TrainingResult>, Failure> {
    const STEP: &str = "training";
    let absolute =
        |path: &Path| std::path::absolute(path).map(|p| p.display().to_string()).map_err(|e| failed(STEP, e));
    for algorithm in ALGORITHMS {
        let mut run = Manifest::new(format!("digits-{algorithm}"), [&absolute(python)?, "train.py", algorithm]);
        run.spec.experiment = Some("digits".into());
        run.spec.working_dir = Some(absolute(&dir.join("work"))?);
        run.spec.data.push(version.clone());
        run.spec.active_deadline_seconds = Some(600);
        for (name, value) in [("MLFLOW_DISABLE_TELEMETRY", "1"), ("OMP_NUM_THREADS", "1")] {
            run.spec.env.push(EnvVar { name: name.into(), value: Some(value.into()), value_from: None });
        }
        client.post_text::<Submitted>("/api/v1/runs", json!(run).to_string()).await?;
    }
    let mut results = Vec::new();
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
        let append = |bytes: &[u8]| {
            log.extend_from_slice(bytes);
            true
        };
        client.follow(&format!("{path}/log"), append).await?;
        let text = String::from_utf8_lossy(&log);
        let tail: Vec<&str> = text.lines().rev().take(12).collect();
        let shown = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
        verify(
            STEP,
            run.status.phase == Phase::Succeeded,
            format_args!("{algorithm}: {} {}\n{shown}", run.status.reason, run.status.message),
        )?;
        let parsed: TrainingResult = text
            .lines()
            .rev()
            .find_map(|line| serde_json::from_str(line).ok())
            .ok_or_else(|| failed(STEP, format_args!("{algorithm} printed no result:\n{shown}")))?;
        verify(
            STEP,
            parsed.run_id == run.status.run_id,
            format_args!(
                "{algorithm} was tracked as run {}, but submitted as run {}",
                parsed.run_id, run.status.run_id
            ),
        )?;
        let duration = run.status.start_time.zip(run.status.completion_time).map_or(0, |(from, to)| to.0 - from.0);
        step.note(format_args!(
            "{algorithm:7} accuracy {:.4} in {}",
            parsed.accuracy,
            units::micros(duration as f64 * 1000.0)
        ));
        results.push(parsed);
    }
    Ok(results)
}

/// Verifies that the server has everything that the training runs logged, then sets the aliases.
async fn promote(step: &Steps, client: &Client, results: &[TrainingResult], experiment: &Value) -> Result<(), Failure> {
    const STEP: &str = "registry";
    let versions = model::versions(client, "digits").await?;
    for t in results {
        let registered =
            versions.iter().any(|v| v["version"] == t.version.as_str() && v["run_id"] == t.run_id.as_str());
        verify(STEP, registered, format_args!("version {} of run {} is not registered", t.version, t.run_id))?;
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
            datasets == 3 && run["info"]["status"] == "FINISHED",
            format_args!("run {} is not complete", t.run_id),
        )?;
        let files: Value =
            client.get(&format!("/api/2.0/mlflow/artifacts/list?run_id={}&path=plots", encode(&t.run_id))).await?;
        let has_plot =
            files["files"].as_array().into_iter().flatten().any(|f| f["path"] == "plots/confusion_matrix.png");
        verify(STEP, has_plot, format_args!("run {} has no confusion matrix", t.run_id))?;
    }
    let mut ranked: Vec<&TrainingResult> = results.iter().collect();
    ranked.sort_by(|a, b| b.accuracy.total_cmp(&a.accuracy));
    for (alias, best) in ["champion", "challenger"].into_iter().zip(&ranked) {
        model::promote(client, "digits", &best.version, alias).await?;
        step.note(format_args!("{alias} = version {} ({}, {:.4})", best.version, best.algorithm, best.accuracy));
    }
    Ok(())
}

/// Runs `query.py`, which sends every test image over both protocols.
fn query(dir: &Path, python: &Path, addresses: &Addresses) -> Result<QueryOutput, Failure> {
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
    let output: QueryOutput = serde_json::from_slice(&out.stdout).map_err(|e| failed(STEP, e))?;
    verify(
        STEP,
        output.records.len() == 2 * IMAGES,
        format_args!("{} responses, expected {}", output.records.len(), 2 * IMAGES),
    )?;
    Ok(output)
}

fn percentile(sorted: &[f64], q: f64) -> f64 {
    let at = ((sorted.len() as f64 - 1.0) * q).round() as usize;
    sorted.get(at).copied().unwrap_or(0.0)
}

/// Builds the table of results per model version, after comparing every response with the prediction of the training run.
async fn report(
    client: &Client,
    results: &[TrainingResult],
    output: &QueryOutput,
    before: &Value,
) -> Result<Table, Failure> {
    const STEP: &str = "verification";
    let mut by_version: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in &output.records {
        by_version.entry(&record.version).or_default().push(record);
    }
    verify(STEP, by_version.len() == 2, format_args!("{} versions responded, expected 2", by_version.len()))?;
    let mut table =
        Table::new(&["VERSION", "ALGORITHM", "ACCURACY", "CORRECT", "REQUESTS", "REST", "GRPC", "P50", "P99", "SHARE"]);
    for (version, records) in &by_version {
        let t = results.iter().find(|t| t.version == *version).ok_or_else(|| {
            failed(STEP, format_args!("version {version} responded, but no training run registered it"))
        })?;
        let path = format!("/get-artifact?run_id={}&path=predictions.json", encode(&t.run_id));
        let predictions: Value = client.get(&path).await?;
        let mismatch = records.iter().find(|r| predictions["predicted"][r.image] != r.label);
        if let Some(r) = mismatch {
            return Err(failed(
                STEP,
                format_args!(
                    "version {version} predicted {} for image {} over {}, but its training run predicted {}",
                    r.label, r.image, r.protocol, predictions["predicted"][r.image]
                ),
            ));
        }
        let correct = records.iter().filter(|r| output.truth.get(r.image) == Some(&r.label)).count();
        let mut times: Vec<f64> = records.iter().map(|r| r.us).collect();
        times.sort_by(f64::total_cmp);
        let count_of = |protocol: &str| records.iter().filter(|r| r.protocol == protocol).count().to_string();
        table.row(vec![
            (*version).to_owned(),
            t.algorithm.clone(),
            format!("{:.4}", correct as f64 / records.len() as f64),
            format!("{correct}/{}", records.len()),
            records.len().to_string(),
            count_of("rest"),
            count_of("grpc"),
            units::micros(percentile(&times, 0.50)),
            units::micros(percentile(&times, 0.99)),
            format!("{:.1}%", 100.0 * records.len() as f64 / output.records.len() as f64),
        ]);
    }
    // The split hashes the request ids, so it is deterministic. The bounds are 5 standard deviations around the mean of 720 draws with
    // p = 0.1.
    let smaller = by_version.values().map(Vec::len).min().unwrap_or(0);
    verify(STEP, (32..=112).contains(&smaller), format_args!("the challenger received {smaller} of 720 requests"))?;
    let after: Value = client.get("/api/v1/deployments/digits").await?;
    let count = |v: &Value| -> u64 {
        v["variants"].as_array().into_iter().flatten().filter_map(|v| v["stats"]["requests"].as_u64()).sum()
    };
    let counted = count(&after) - count(before);
    verify(STEP, counted == output.records.len() as u64, format_args!("the gateway counted {counted} requests"))?;
    Ok(table)
}

/// Prints the lineage of the last response and verifies that it is complete down to the file that tracks the data, and its commit.
async fn lineage(client: &Client, output: &QueryOutput) -> Result<(), Failure> {
    let last = output.records.last().ok_or_else(|| failed("lineage", "no responses"))?;
    let id = format!("{}-{}", last.protocol, last.image);
    let found: Value = client.get(&format!("/api/v1/requests/{}/lineage", encode(&id))).await?;
    let steps = show::chain(&found);
    let begins_at_data = ["data file", "commit"].iter().all(|kind| steps.iter().any(|s| s[0] == *kind));
    let complete = begins_at_data && steps.iter().all(|s| s[1] != "-" && !s[1].is_empty());
    verify("lineage", complete, format_args!("the lineage of request {id} is incomplete: {steps:?}"))?;
    let mut table = Table::new(&["LINEAGE", "ID", "DETAILS"]);
    steps.into_iter().for_each(|s| table.row(s.to_vec()));
    print_text(&format!("\n{table}"));
    Ok(())
}
