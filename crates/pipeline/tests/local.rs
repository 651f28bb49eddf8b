//! Steps of pipelines as processes of this machine, with a real Python and the real `kfp`. The environment is created once, from the
//! package index, in the folder `SLIPWAY_TEST_ENVIRONMENTS`, or in one of the build; where there is no index, the tests are skipped.

#![allow(clippy::unwrap_used, clippy::panic)] // these are tests

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use libtest_mimic::{Arguments, Trial};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use slipway_exec::local::guard::guard;
use slipway_exec::local::supervise;
use slipway_pipeline::ir::ml_pipelines::component_inputs_spec::ParameterSpec as InputParameter;
use slipway_pipeline::ir::ml_pipelines::component_outputs_spec::{ArtifactSpec, ParameterSpec as OutputParameter};
use slipway_pipeline::ir::ml_pipelines::parameter_type::ParameterTypeEnum;
use slipway_pipeline::ir::ml_pipelines::pipeline_deployment_config::executor_spec::Spec;
use slipway_pipeline::ir::ml_pipelines::pipeline_deployment_config::pipeline_container_spec::EnvVar;
use slipway_pipeline::ir::ml_pipelines::pipeline_deployment_config::{ExecutorSpec, PipelineContainerSpec};
use slipway_pipeline::ir::ml_pipelines::{
    ArtifactTypeSchema, ComponentInputsSpec, ComponentOutputsSpec, ComponentSpec, artifact_type_schema,
};
use slipway_pipeline::launch::local::{ImageMapping, LocalLauncher, Settings};
use slipway_pipeline::launch::{AttemptId, Launcher};
use slipway_pipeline::model::{Failure, Inputs, Launch, Outcome, Outputs, RunInfo, TaskPath};
use tempfile::TempDir;

const TEST_TIMEOUT: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(2);
const LOG_LIMIT: u64 = 1 << 20;
const KFP: &str = "kfp==2.17.3";

const INSTALL: &str = "\nif ! [ -x \"$(command -v pip)\" ]; then\n    python3 -m ensurepip || python3 -m ensurepip --user || \
                       apt-get install python3-pip\nfi\n\nPIP_DISABLE_PIP_VERSION_CHECK=1 python3 -m pip install --quiet \
                       --no-warn-script-location PACKAGES && \"$0\" \"$@\"\n";
const EXECUTE: &str = "program_path=$(mktemp -d)\n\nprintf \"%s\" \"$0\" > \"$program_path/ephemeral_component.py\"\n\
                       _KFP_RUNTIME=true python3 -m kfp.dsl.executor_main                         --component_module_path  \
                       \"$program_path/ephemeral_component.py\"                         \"$@\"\n";
const HEADER: &str = "import kfp\nfrom kfp import dsl\nfrom kfp.dsl import *\nfrom typing import *\n";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["supervise", folder] => {
            runtime().block_on(supervise(Path::new(folder))).unwrap();
            return ExitCode::SUCCESS;
        }
        ["guard", parent, "--", ref program @ ..] => {
            let program: Vec<_> = program.iter().map(|word| OsString::from(*word)).collect();
            return ExitCode::from(runtime().block_on(guard(parent.parse().unwrap(), &program)).unwrap());
        }
        ["install", folder, package] => {
            let folder = Path::new(folder);
            runtime().block_on(fresh_launcher(folder).execute(installing(Path::new(package))));
            return ExitCode::SUCCESS;
        }
        ["serve", folder, kind, counter] => {
            runtime().block_on(launcher(Path::new(folder)).execute(counting(kind, Path::new(counter))));
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let has_python = runtime().block_on(has_python());
    let trial = |&(name, needs_python, test): &(&str, bool, fn())| {
        let trial = Trial::test(name, move || {
            test();
            Ok(())
        });
        trial.with_ignored_flag(needs_python && !has_python)
    };
    let trials = TESTS.iter().map(trial).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

const TESTS: &[(&str, bool, fn())] = &[
    ("lightweight_step_returns_its_outputs", true, || run(lightweight_step_returns_its_outputs)),
    ("steps_do_not_affect_later_ones", true, || run(steps_do_not_affect_later_ones)),
    ("variables_read_at_start_need_a_new_interpreter", true, || run(variables_read_at_start_need_a_new_interpreter)),
    ("stopped_step_ends_with_all_its_processes", true, || run(stopped_step_ends_with_all_its_processes)),
    ("steps_survive_killed_servers_and_run_once", true, || run(steps_survive_killed_servers_and_run_once)),
    ("vanished_step_fails_and_is_not_repeated", true, || run(vanished_step_fails_and_is_not_repeated)),
    ("packages_that_a_step_installs_are_its_own", true, || run(packages_that_a_step_installs_are_its_own)),
    ("failed_installation_is_the_reason", true, || run(failed_installation_is_the_reason)),
    ("installers_end_with_their_server", true, || run(installers_end_with_their_server)),
    ("warm_steps_are_fast", true, || run(warm_steps_are_fast)),
    ("commands_run_without_a_container", false, || run(commands_run_without_a_container)),
    ("images_that_cannot_run_here_are_named", false, || run(images_that_cannot_run_here_are_named)),
    ("mapped_images_use_their_environment", false, || run(mapped_images_use_their_environment)),
    ("waiting_steps_start_in_order", false, || run(waiting_steps_start_in_order)),
    ("stopped_step_that_waits_never_starts", false, || run(stopped_step_that_waits_never_starts)),
    ("claims_are_folders", false, || run(claims_are_folders)),
];

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn run<F: Future<Output = ()>>(test: fn(TempDir) -> F) {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async { tokio::time::timeout(TEST_TIMEOUT, test(folder)).await.unwrap() });
}

fn environments() -> PathBuf {
    std::env::var_os("SLIPWAY_TEST_ENVIRONMENTS")
        .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("environments"), PathBuf::from)
}

fn settings(folder: &Path) -> Settings {
    Settings {
        environments: environments(),
        worker_idle: Duration::from_secs(20),
        grace: Duration::from_secs(5),
        log_limit: LOG_LIMIT,
        concurrency: 4,
        ..Settings::new(folder, folder.join("secrets"), std::env::current_exe().unwrap())
    }
}

fn launcher(folder: &Path) -> LocalLauncher {
    LocalLauncher::new(settings(folder))
}

/// A launcher with environments of its own.
fn fresh_launcher(folder: &Path) -> LocalLauncher {
    LocalLauncher::new(Settings { environments: folder.join("environments"), ..settings(folder) })
}

/// Whether the environment of the tests is there, or can be created.
async fn has_python() -> bool {
    let folder = tempfile::tempdir().unwrap();
    match launcher(folder.path()).execute(python("probe", "pass")).await {
        Outcome::Succeeded(_) => true,
        other => {
            eprintln!("skipped: there is no environment with {KFP}: {other:?}");
            false
        }
    }
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

/// A launch of a container without inputs and outputs.
fn container(name: &str, image: &str, command: &[&str]) -> Launch {
    let container =
        PipelineContainerSpec { image: image.into(), command: words(command), ..PipelineContainerSpec::default() };
    let run = RunInfo {
        run_id: "run-1".into(),
        namespace: "default".into(),
        resource_name: "digits-1".into(),
        pipeline_name: "digits".into(),
        ..RunInfo::default()
    };
    Launch {
        run: Arc::new(run),
        path: TaskPath(name.into()),
        task_name: name.into(),
        attempt: 1,
        component: Arc::new(ComponentSpec::default()),
        executor: Arc::new(ExecutorSpec { spec: Some(Spec::Container(container)) }),
        platform: None,
        inputs: Inputs::default(),
        platform_inputs: BTreeMap::new(),
    }
}

/// A lightweight component as the SDK compiles it: a function `step` with a signature and a body.
fn function(name: &str, packages: &str, signature: &str, body: &str) -> Launch {
    let install = INSTALL.replace("PACKAGES", packages);
    let body = body.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let code = format!("{HEADER}\ndef step{signature}:\n{body}\n");
    let arguments = ["--executor_input", "{{$}}", "--function_to_execute", "step"];
    let command = ["sh", "-c", &install, "sh", "-ec", EXECUTE, &code];
    container(name, "python:3.11", &[&command[..], &arguments[..]].concat())
}

fn python(name: &str, body: &str) -> Launch {
    function(name, &format!("'{KFP}' '--no-deps'"), "()", body)
}

/// A step that adds a line to a file, and then works for a moment.
fn counting(kind: &str, counter: &Path) -> Launch {
    let file = counter.display();
    let script = format!("echo x >> '{file}'; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done");
    let body = format!("open('{file}', 'a').write('x\\n')\nsum(range(3_000_000))");
    if kind == "python" { python("count", &body) } else { container("count", "alpine", &["sh", "-c", &script]) }
}

fn with_output(mut launch: Launch, name: &str, kind: ParameterTypeEnum) -> Launch {
    let mut component = (*launch.component).clone();
    let outputs = component.output_definitions.get_or_insert_default();
    let parameter = OutputParameter { parameter_type: kind as i32, ..OutputParameter::default() };
    outputs.parameters.insert(name.into(), parameter);
    launch.component = Arc::new(component);
    launch
}

fn container_of(launch: &mut Launch) -> &mut PipelineContainerSpec {
    match Arc::get_mut(&mut launch.executor).unwrap().spec.as_mut() {
        Some(Spec::Container(container)) => container,
        _ => panic!("not a container"),
    }
}

#[track_caller]
fn succeeded(outcome: Outcome) -> Outputs {
    match outcome {
        Outcome::Succeeded(outputs) => outputs,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn failure(outcome: Outcome) -> Failure {
    match outcome {
        Outcome::Failed(failure) => failure,
        other => panic!("{other:?}"),
    }
}

async fn log_of(launcher: &LocalLauncher, launch: &Launch) -> String {
    let stream = launcher.log(AttemptId::from(launch), true).await.unwrap();
    let chunks: Vec<bytes::Bytes> = stream.try_collect().await.unwrap();
    String::from_utf8_lossy(&chunks.concat()).into_owned()
}

/// The only folder of an attempt of the run.
fn attempt_folder(folder: &Path) -> Option<PathBuf> {
    let inside = |path: PathBuf| {
        let entries = std::fs::read_dir(path).ok()?.flatten().map(|entry| entry.path());
        entries.filter(|path| path.is_dir() && !path.ends_with("workspace")).max()
    };
    inside(inside(inside(folder.join("runs"))?)?)
}

async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        tokio::time::sleep(POLL).await;
    }
}

/// Whether a process exists and has not ended; one that has ended may exist until its parent notices.
fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    stat.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z')))
}

async fn lightweight_step_returns_its_outputs(folder: TempDir) {
    let launcher = launcher(folder.path());
    let body =
        "print('adding', a, b)\nopen(model.path, 'w').write(str(a + b))\nmodel.metadata['sum'] = a + b\nreturn a + b";
    let mut launch =
        function("add", &format!("'{KFP}' '--no-deps'"), "(a: int, b: int, model: Output[Model]) -> int", body);
    let number =
        InputParameter { parameter_type: ParameterTypeEnum::NumberInteger as i32, ..InputParameter::default() };
    let kind = Some(artifact_type_schema::Kind::SchemaTitle("system.Model".into()));
    let schema = ArtifactTypeSchema { kind, schema_version: "0.0.1".into() };
    let artifact = ArtifactSpec { artifact_type: Some(schema), ..ArtifactSpec::default() };
    launch.component = Arc::new(ComponentSpec {
        input_definitions: Some(ComponentInputsSpec {
            parameters: [("a".into(), number.clone()), ("b".into(), number)].into(),
            ..ComponentInputsSpec::default()
        }),
        output_definitions: Some(ComponentOutputsSpec {
            artifacts: [("model".into(), artifact)].into(),
            ..ComponentOutputsSpec::default()
        }),
        ..ComponentSpec::default()
    });
    launch.inputs.parameters = [("a".into(), json!(40)), ("b".into(), json!(2))].into();
    let launch = with_output(launch, "Output", ParameterTypeEnum::NumberInteger);
    let outputs = succeeded(launcher.execute(launch.clone()).await);
    assert_eq!(outputs.parameters["Output"].as_f64(), Some(42.0));
    let model = &outputs.artifacts["model"][0];
    assert_eq!((model.schema_title.as_str(), model.metadata["sum"].as_f64()), ("system.Model", Some(42.0)));
    assert!(model.uri.starts_with(folder.path().join("artifacts/digits/run-1/add").to_str().unwrap()));
    assert_eq!(std::fs::read_to_string(&model.uri).unwrap(), "42");
    assert_eq!(
        model.digest.as_deref(),
        Some("sha256:73475cb40a568e8da8a045ced110137e159f890ac4da883b6b17dc651b3a8049")
    );
    assert!(log_of(&launcher, &launch).await.contains("adding 40 2\n"));
    // The same attempt is not executed again.
    std::fs::write(folder.path().join("artifacts/other"), "").unwrap();
    assert_eq!(succeeded(launcher.execute(launch).await).artifacts["model"][0].uri, model.uri);
    launcher.forget("default".into(), "run-1".into()).await.unwrap();
    assert!(attempt_folder(folder.path()).is_none() && Path::new(&model.uri).exists());
}

async fn steps_do_not_affect_later_ones(folder: TempDir) {
    let launcher = launcher(folder.path());
    let pid_file = folder.path().join("pid");
    let state = "import os, sys, builtins, random\nworker = open(f'/proc/{os.getppid()}/stat').read().split()[3]\n";
    let check = format!(
        "{state}print(worker, os.getcwd().endswith('/work'), 'LEAK' in os.environ, hasattr(builtins, 'leak'), \
         os.environ.get('SLIPWAY_SECRET'), sys.argv[1], os.getsid(0) == os.getpid(), sys.stdin.read() == '')"
    );
    let faulty = [
        ("exits", "import os; os._exit(3)".to_owned(), Some(3), "exited with code 3"),
        ("is-killed", "import os; os.kill(os.getpid(), 9)".to_owned(), Some(137), "signal 9"),
        ("raises", "raise ValueError('no data')".to_owned(), Some(1), "ValueError: no data"),
        ("leaves", "import sys; print('the reason'); sys.exit(7)".to_owned(), Some(7), "the reason"),
        (
            "changes",
            "import os, builtins\nos.environ['LEAK'] = '1'\nbuiltins.leak = bytearray(1 << 27)\nos.chdir('/')\nos.abort()"
                .to_owned(),
            Some(134),
            "signal 6",
        ),
        (
            "chatters",
            "import os\nline = b'x' * 65535 + b'\\n'\nfor _ in range(800):\n    os.write(1, line)\nos._exit(4)".to_owned(),
            Some(4),
            "exited with code 4",
        ),
        (
            "daemonizes",
            format!(
                "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        import time\n        \
                 open('{0}.new', 'w').write(str(os.getpid()))\n        os.rename('{0}.new', '{0}')\n        time.sleep(1000)\n    \
                 os._exit(0)\nwhile not os.path.exists('{0}'):\n    pass\nos._exit(5)",
                pid_file.display()
            ),
            Some(5),
            "exited with code 5",
        ),
    ];
    let first = python("check-first", &check);
    succeeded(launcher.execute(first.clone()).await);
    let expected = log_of(&launcher, &first).await;
    let line = expected.lines().find(|line| line.contains(" True ")).unwrap().to_owned();
    assert!(line.ends_with(" True False False None --component_module_path True True"), "{line}");
    for (name, body, exit_code, message) in faulty {
        let launch = python(name, &body);
        let failure = failure(launcher.execute(launch.clone()).await);
        assert_eq!(failure.exit_code, exit_code, "{name}: {}", failure.message);
        assert!(
            failure.message.contains(message) && !failure.message.contains("worker.py"),
            "{name}: {}",
            failure.message
        );
        assert!(log_of(&launcher, &launch).await.len() as u64 <= LOG_LIMIT, "{name}");
        let next = python(&format!("check-{name}"), &check);
        succeeded(launcher.execute(next.clone()).await);
        assert!(log_of(&launcher, &next).await.contains(&line), "{name}: another worker or state: {line}");
    }
    assert!(!is_alive(&std::fs::read_to_string(pid_file).unwrap()), "a process outlived its step");
}

async fn variables_read_at_start_need_a_new_interpreter(folder: TempDir) {
    let launcher = launcher(folder.path());
    let mut launch =
        python("seeded", "import os, sys\nprint('seed', sys.flags.hash_randomization, os.environ['PYTHONHASHSEED'])");
    let variable = EnvVar { name: "PYTHONHASHSEED".into(), value: "0".into() };
    container_of(&mut launch).env.push(variable);
    succeeded(launcher.execute(launch.clone()).await);
    assert!(log_of(&launcher, &launch).await.contains("seed 0 0"));
}

async fn stopped_step_ends_with_all_its_processes(folder: TempDir) {
    let launcher = launcher(folder.path());
    let pid_file = folder.path().join("pid");
    let body = format!(
        "import subprocess, time\nchild = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n\
         open('{0}.new', 'w').write(str(child.pid))\nimport os; os.rename('{0}.new', '{0}')\ntime.sleep(1000)",
        pid_file.display()
    );
    let launch = python("sleeps", &body);
    let execution = tokio::spawn(launcher.execute(launch.clone()));
    until("the step starts", || pid_file.exists()).await;
    let start = Instant::now();
    launcher.stop(AttemptId::from(&launch)).await;
    assert_eq!(execution.await.unwrap(), Outcome::Canceled);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(!is_alive(&std::fs::read_to_string(pid_file).unwrap()), "a process outlived its step");
    assert_eq!(launcher.execute(launch).await, Outcome::Canceled, "a later server sees the same");
}

async fn steps_survive_killed_servers_and_run_once(folder: TempDir) {
    const ROUNDS: usize = 20;
    let milestones = ["launch.json", "lock", "started", "process.json", "end.json"];
    for round in 0..ROUNDS {
        let kind = if round % 2 == 0 { "python" } else { "container" };
        let root = folder.path().join(round.to_string());
        let counter = root.join("counter");
        std::fs::create_dir(&root).unwrap();
        let mut server = Command::new(std::env::current_exe().unwrap())
            .args([Path::new("serve"), &root, Path::new(kind), &counter])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let milestone = milestones[round % milestones.len()];
        until(milestone, || attempt_folder(&root).is_some_and(|attempt| attempt.join(milestone).exists())).await;
        server.kill().unwrap();
        server.wait().unwrap();
        let outcome = launcher(&root).execute(counting(kind, &counter)).await;
        assert!(matches!(outcome, Outcome::Succeeded(_)), "round {round}, {kind}, {milestone}: {outcome:?}");
        assert_eq!(std::fs::read_to_string(&counter).unwrap(), "x\n", "round {round}, {kind}, {milestone}");
    }
}

async fn vanished_step_fails_and_is_not_repeated(folder: TempDir) {
    let launcher = launcher(folder.path());
    let (counter, pid_file) = (folder.path().join("counter"), folder.path().join("pid"));
    let body = format!(
        "import os, time\nopen('{}', 'a').write('x')\nopen('{1}.new', 'w').write(str(os.getpid()))\n\
         os.rename('{1}.new', '{1}')\ntime.sleep(1000)",
        counter.display(),
        pid_file.display()
    );
    let launch = python("vanishes", &body);
    let execution = tokio::spawn(launcher.execute(launch.clone()));
    until("the step starts", || pid_file.exists()).await;
    let record = attempt_folder(folder.path()).unwrap().join("process.json");
    until("the step is recorded", || record.exists()).await;
    let processes: Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    let supervisor = i32::try_from(processes["supervisor"].as_i64().unwrap()).unwrap();
    kill_process(Pid::from_raw(supervisor).unwrap(), Signal::KILL).unwrap();
    for outcome in [execution.await.unwrap(), launcher.execute(launch).await] {
        let failure = failure(outcome);
        assert!(failure.message.contains("vanished") && !failure.is_permanent, "{}", failure.message);
    }
    let program = std::fs::read_to_string(pid_file).unwrap();
    until("the program of a dead supervisor ends", || !is_alive(&program)).await;
    assert_eq!(std::fs::read_to_string(counter).unwrap(), "x");
}

async fn packages_that_a_step_installs_are_its_own(folder: TempDir) {
    let launcher = launcher(folder.path());
    let package = folder.path().join("package");
    std::fs::create_dir(&package).unwrap();
    // A wheel is a zip file, which Python can write.
    let body = format!(
        "import subprocess, sys, zipfile, os\nwheel = '{}/own-1.0-py3-none-any.whl'\nwith zipfile.ZipFile(wheel, 'w') as z:\n    \
         z.writestr('own.py', 'x = 1')\n    z.writestr('own-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: own\\nVersion: 1.0\\n')\n    \
         z.writestr('own-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n    \
         z.writestr('own-1.0.dist-info/RECORD', '')\n\
         subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', wheel], check=True)\nimport own",
        package.display()
    );
    succeeded(launcher.execute(python("installs", &body)).await);
    let failure = failure(launcher.execute(python("imports", "import own")).await);
    assert!(failure.message.contains("No module named 'own'"), "{}", failure.message);
}

async fn failed_installation_is_the_reason(folder: TempDir) {
    let settings = Settings { environments: folder.path().join("environments"), ..settings(folder.path()) };
    let launcher = LocalLauncher::new(settings);
    let launch = function("trains", "'/missing/x-1.0-py3-none-any.whl'", "()", "pass");
    let failure = failure(launcher.execute(launch.clone()).await);
    assert!(
        failure.message.contains("/missing/x-1.0") && failure.message.contains("task 'trains'"),
        "{}",
        failure.message
    );
    assert!(!failure.is_permanent && log_of(&launcher, &launch).await.contains("/missing/x-1.0"));
}

/// Prints the time of a warm step. The limit is far above what is expected, for machines with other load.
/// A step that needs the package in a folder.
fn installing(package: &Path) -> Launch {
    let install = INSTALL.replace("PACKAGES", &format!("'{}'", package.display()));
    container("install", "python:3.11", &["sh", "-c", &install, "python3", "-c", "import half; print(half.VALUE)"])
}

async fn installers_end_with_their_server(folder: TempDir) {
    // A package that builds itself, so that no index is needed. Its build writes its process id, and then waits as long as there is a file.
    const BACKEND: &str = r#"
import os, time, zipfile

def build_wheel(folder, settings=None, metadata=None):
    with open("PLACE/pid.new", "w") as file:
        file.write(str(os.getpid()))
    os.rename("PLACE/pid.new", "PLACE/pid")
    while os.path.exists("PLACE/wait"):
        time.sleep(0.01)
    with zipfile.ZipFile(f"{folder}/half-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("half.py", "VALUE = 42")
        wheel.writestr("half-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: half\nVersion: 1\n")
        wheel.writestr("half-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("half-1.dist-info/RECORD", "")
    return "half-1-py3-none-any.whl"
"#;
    const PROJECT: &str = "[project]\nname = 'half'\nversion = '1'\n\n[build-system]\nrequires = []\nbuild-backend = 'backend'\n\
                           backend-path = ['.']\n";
    let (package, place) = (folder.path().join("package"), folder.path().join("place"));
    for folder in [&package, &place] {
        std::fs::create_dir(folder).unwrap();
    }
    std::fs::write(package.join("backend.py"), BACKEND.replace("PLACE", place.to_str().unwrap())).unwrap();
    std::fs::write(package.join("pyproject.toml"), PROJECT).unwrap();
    std::fs::write(place.join("wait"), "").unwrap();
    let mut server = Command::new(std::env::current_exe().unwrap())
        .args([Path::new("install"), folder.path(), &package])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    until("the installation begins", || place.join("pid").exists()).await;
    let installer = std::fs::read_to_string(place.join("pid")).unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    until("the installer ends with its server", || !is_alive(&installer)).await;
    let unfinished = std::fs::read_dir(folder.path().join("environments")).unwrap().flatten();
    let unfinished: Vec<_> = unfinished.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    assert!(unfinished.len() == 1 && !unfinished[0].join("environment.json").exists(), "{unfinished:?}");
    std::fs::write(unfinished[0].join("venv/remains"), "").unwrap();
    std::fs::remove_file(place.join("wait")).unwrap();
    let launcher = fresh_launcher(folder.path());
    let launch = installing(&package);
    succeeded(launcher.execute(launch.clone()).await);
    assert!(log_of(&launcher, &launch).await.contains("42"));
    assert!(!unfinished[0].join("venv/remains").exists(), "the half-made environment was used");
}

async fn warm_steps_are_fast(folder: TempDir) {
    const STEPS: usize = 30;
    let launcher = launcher(folder.path());
    succeeded(launcher.execute(python("warms-up", "pass")).await);
    let mut times = Vec::new();
    for at in 0..STEPS {
        let start = Instant::now();
        succeeded(launcher.execute(python(&format!("step-{at}"), "pass")).await);
        times.push(start.elapsed());
    }
    times.sort();
    println!("warm steps: median {:?}, 90 % within {:?}", times[STEPS / 2], times[STEPS * 9 / 10]);
    assert!(times[STEPS / 2] < Duration::from_millis(400), "{times:?}");
}

async fn commands_run_without_a_container(folder: TempDir) {
    let launcher = launcher(folder.path());
    let script = "echo \"$0 $GREETING $KFP_RETRY_INDEX\"; printf '%s' \"$0\" > \"$1\"; pwd";
    let file = "{{$.outputs.parameters['text'].output_file}}";
    let mut launch = container("says", "docker.io/library/alpine:3.20", &["sh", "-c", script, "it's {{$}}", file]);
    container_of(&mut launch).command[3] = "it's".into();
    container_of(&mut launch).env.push(EnvVar { name: "GREETING".into(), value: "hello".into() });
    let launch = with_output(launch, "text", ParameterTypeEnum::String);
    let outputs = succeeded(launcher.execute(launch.clone()).await);
    assert_eq!(outputs.parameters["text"], json!("it's"));
    assert!(log_of(&launcher, &launch).await.starts_with("it's hello 0\n/"));
    let missing = Launch { path: TaskPath("other".into()), ..with_output(launch, "none", ParameterTypeEnum::String) };
    let failure = failure(launcher.execute(missing).await);
    assert!(failure.message.contains("'none'") && failure.exit_code == Some(0), "{}", failure.message);
}

async fn images_that_cannot_run_here_are_named(folder: TempDir) {
    let launcher = launcher(folder.path());
    for (launch, parts) in [
        (container("uploads", "gcr.io/team/uploader:1", &["upload"]), ["'uploads'", "gcr.io/team/uploader:1"]),
        (container("runs", "alpine", &["no-such-program"]), ["'runs'", "no-such-program"]),
        (container("starts", "alpine", &[]), ["'starts'", "alpine"]),
    ] {
        let failure = failure(launcher.execute(launch).await);
        assert!(failure.is_permanent && parts.iter().all(|part| failure.message.contains(part)), "{}", failure.message);
    }
}

async fn mapped_images_use_their_environment(folder: TempDir) {
    let environment = folder.path().join("team");
    std::fs::create_dir_all(environment.join("bin")).unwrap();
    std::os::unix::fs::symlink("/bin/echo", environment.join("bin/train")).unwrap();
    let images = vec![ImageMapping { pattern: "gcr.io/team/*".into(), environment: Some(environment) }];
    let launcher = LocalLauncher::new(Settings { images, ..settings(folder.path()) });
    let launch = container("trains", "gcr.io/team/trainer:1", &["train", "digits"]);
    succeeded(launcher.execute(launch.clone()).await);
    assert_eq!(log_of(&launcher, &launch).await, "digits\n");
}

async fn waiting_steps_start_in_order(folder: TempDir) {
    let launcher = LocalLauncher::new(Settings { concurrency: 1, ..settings(folder.path()) });
    let order = folder.path().join("order");
    let steps = (0..5).map(|at| {
        let script = format!("printf {at} >> '{}'", order.display());
        launcher.execute(container(&format!("step-{at}"), "alpine", &["sh", "-c", &script]))
    });
    futures_util::future::join_all(steps).await.into_iter().for_each(|outcome| drop(succeeded(outcome)));
    assert_eq!(std::fs::read_to_string(order).unwrap(), "01234");
}

async fn stopped_step_that_waits_never_starts(folder: TempDir) {
    let launcher = LocalLauncher::new(Settings { concurrency: 1, ..settings(folder.path()) });
    let (gate, started) = (folder.path().join("gate"), folder.path().join("started"));
    let script = format!("touch '{}'; while ! [ -e '{}' ]; do :; done", started.display(), gate.display());
    let first = tokio::spawn(launcher.execute(container("first", "alpine", &["sh", "-c", &script])));
    until("the first step starts", || started.exists()).await;
    let launch = container("second", "alpine", &["sh", "-c", "exit 1"]);
    let second = tokio::spawn(launcher.execute(launch.clone()));
    until("the second step waits", || folder.path().join("runs").exists() && second_exists(folder.path())).await;
    launcher.stop(AttemptId::from(&launch)).await;
    assert_eq!(second.await.unwrap(), Outcome::Canceled);
    std::fs::write(gate, "").unwrap();
    succeeded(first.await.unwrap());
    assert_eq!(launcher.execute(launch).await, Outcome::Canceled);
}

fn second_exists(folder: &Path) -> bool {
    let runs = std::fs::read_dir(folder.join("runs")).unwrap().flatten();
    let mut tasks = runs.flat_map(|run| std::fs::read_dir(run.path()).into_iter().flatten().flatten());
    tasks.any(|task| task.file_name().to_string_lossy().starts_with("second-"))
}

async fn claims_are_folders(folder: TempDir) {
    let launcher = launcher(folder.path());
    let claims = folder.path().join("volumes/default");
    let mut create = with_output(container("creates", "argostub/createpvc", &[]), "name", ParameterTypeEnum::String);
    create.inputs.parameters = [("pvc_name_suffix".into(), json!("-data"))].into();
    assert_eq!(succeeded(launcher.execute(create.clone()).await).parameters["name"], json!("digits-1-data"));
    assert!(claims.join("digits-1-data").is_dir());
    create.inputs.parameters = [("pvc_name".into(), json!("../outside"))].into();
    assert!(failure(launcher.execute(create).await).is_permanent && !folder.path().join("volumes/outside").exists());
    let mut delete = container("deletes", "argostub/deletepvc", &[]);
    delete.inputs.parameters = [("pvc_name".into(), json!("digits-1-data"))].into();
    for _ in 0..2 {
        succeeded(launcher.execute(delete.clone()).await);
        assert!(!claims.join("digits-1-data").exists());
    }
}
