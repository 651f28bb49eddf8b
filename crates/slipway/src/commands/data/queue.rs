//! `data queue`, and the part of `data exp run` that queues or runs elsewhere.

use std::path::Path;

use slipway_data::DataError;
use slipway_data::commands::Talk;
use slipway_data::experiments::overrides::{self, Override};
use slipway_data::experiments::queue::{self, Execution, Program, Queue, TaskState};
use slipway_data::experiments::run::Request;
use slipway_data::experiments::table::time;
use slipway_data::project::{Project, find_root};
use slipway_data::reports::table::{Form, Table};

use crate::cli::data::experiments::ExecRun;
use crate::cli::data::queue as cli;
use crate::commands::Context;
use crate::output::{Raw, print_note, print_text};

/// How workers and executions are started: as this program, by its own name.
fn program() -> Result<Program, DataError> {
    let path = std::env::current_exe().map_err(|source| DataError::Io { path: "/proc/self/exe".into(), source })?;
    Ok(Program { path, arguments: vec!["data".into()] })
}

/// The queue of the project, whose lock is not held: the workers take it.
fn open_queue(open: &dyn Fn() -> Result<Project, DataError>) -> Result<Queue, DataError> {
    Queue::of(&open()?)
}

fn print_bytes(bytes: &[u8]) {
    let mut stdout = Raw::stdout();
    stdout.write(bytes);
    stdout.finish();
}

pub(super) async fn run(verb: cli::Queue, open: &dyn Fn() -> Result<Project, DataError>) -> Result<(), DataError> {
    let queue = open_queue(open)?;
    match verb {
        cli::Queue::Start { jobs } => {
            let started = queue::start(&queue, jobs, &program()?)?;
            let plural = if started > 1 { "s" } else { "" };
            print_text(&format!("Started '{started}' new experiments task queue worker{plural}.\n"));
        }
        cli::Queue::Stop { kill } => {
            queue::stop(&queue, kill)?;
            print_text(match kill {
                true => "All running tasks in the queue have been killed.Queue workers are stopping.\n",
                false => "Queue workers will stop after running tasks finish.\n",
            });
        }
        cli::Queue::Status => status(&queue)?,
        cli::Queue::Remove(options) => remove(&queue, &options)?,
        cli::Queue::Kill { force, tasks } => {
            for name in queue::kill(&queue, &tasks, force)? {
                print_text(&format!("{name} has been killed.\n"));
            }
        }
        cli::Queue::Logs { encoding: _, follow, task } => {
            if follow {
                print_text(&format!(
                    "Following logs for experiment '{task}'. Use Ctrl+C to stop following logs (experiment execution will continue).\n\n"
                ));
            }
            queue::logs(&queue, &task, follow, &print_bytes).await?;
        }
    }
    Ok(())
}

fn status(queue: &Queue) -> Result<(), DataError> {
    queue.recover()?;
    let tasks = queue.tasks()?;
    if tasks.is_empty() {
        print_text("No experiment tasks in the queue.\n");
    } else {
        let mut table = Table::new(&["Task", "Name", "Created", "Status"]);
        for task in &tasks {
            let created = time(&queue.created(task)?, false);
            let name = task.name().unwrap_or_default().to_owned();
            table.rows.push(vec![task.entry.short().to_owned(), name, created, task.state.word().to_owned()]);
        }
        print_text(&table.render(Form::Text));
    }
    let workers = queue::workers(queue)?;
    print_text(&format!("\nWorker status: {} active, {} idle\n", workers.active, workers.idle));
    Ok(())
}

fn remove(queue: &Queue, options: &cli::Remove) -> Result<(), DataError> {
    let removed = if options.tasks.is_empty() {
        let states = [
            (options.queued, TaskState::Queued),
            (options.failed, TaskState::Failed),
            (options.success, TaskState::Success),
        ];
        let states: Vec<TaskState> =
            states.into_iter().filter(|(on, _)| *on || options.all).map(|(_, state)| state).collect();
        queue.clear(&states)?
    } else {
        queue.remove(&options.tasks)?
    };
    print_text(&match removed.is_empty() {
        true => "No tasks found named []\n".to_owned(),
        false => format!("Removed tasks in queue: {}\n", removed.join(", ")),
    });
    Ok(())
}

/// Queues an experiment for each combination of parameters.
pub(super) fn put(
    project: &mut Project,
    request: &Request,
    combinations: Vec<Vec<Override>>,
    talk: &dyn Talk,
) -> Result<(), DataError> {
    let is_sweep = combinations.len() > 1;
    for (i, params) in combinations.into_iter().enumerate() {
        let numbered = request.name.as_ref().filter(|_| is_sweep).map(|name| format!("{name}-{}", i + 1));
        let request = Request { name: numbered.or_else(|| request.name.clone()), params, ..request.clone() };
        let entry = queue::put(project, &request, talk)?;
        if !request.params.is_empty() {
            print_text(&format!("Queueing with overrides '{}'.\n", overrides::shown(&request.params)));
        }
        let name = entry.name.as_deref().unwrap_or_else(|| entry.short());
        print_text(&format!("Queued experiment '{name}' for future execution.\n"));
    }
    Ok(())
}

/// Runs an experiment in a folder of its own.
pub(super) fn run_apart(project: Project, request: &Request, talk: &dyn Talk) -> Result<(), DataError> {
    match queue::run_apart(project, request, &program()?, talk)? {
        Some(experiment) => report_results(&[experiment.name]),
        None => return Err(DataError::Reproduction("the experiment failed".into())),
    }
    Ok(())
}

fn report_results(names: &[String]) {
    print_text(&format!(
        "\nRan experiment(s): {}\nTo apply the results of an experiment to your workspace run:\n\n\tdvc exp apply <exp>\n",
        names.join(", ")
    ));
}

/// Runs all experiments of the queue.
pub(super) async fn run_all(queue: &Queue, jobs: usize) -> Result<(), DataError> {
    if !queue.tasks()?.iter().any(|task| matches!(task.state, TaskState::Running | TaskState::Queued)) {
        return Ok(());
    }
    print_text(
        "Following logs for all queued experiments. Use Ctrl+C to stop following logs (experiment execution will continue).\n\n",
    );
    let program = program()?;
    let results = tokio::select! {
        results = queue::run_all(queue, jobs, &program, &print_bytes) => results?,
        Ok(()) = tokio::signal::ctrl_c() => {
            print_text("Experiment(s) are still executing in the background. To abort execution use 'dvc queue kill' or 'dvc queue stop'.\n");
            return Ok(());
        }
    };
    if !results.failed.is_empty() {
        print_note(format_args!("Failed to reproduce experiment(s) '{}'", results.failed.join(", ")));
    }
    if !results.succeeded.is_empty() {
        report_results(&results.succeeded);
    }
    Ok(())
}

/// Works on the queue of the project.
pub(super) async fn work(current: &Path, number: usize) -> Result<(), DataError> {
    queue::run_worker(&Queue::at(&find_root(current)?)?, number, &program()?).await
}

/// Executes an experiment, for a worker or for `exp run --temp`. False if it failed.
pub(super) async fn execute(
    context: &Context,
    current: &Path,
    options: ExecRun,
    open: &dyn Fn(&Path) -> Result<Project, DataError>,
    talk: &dyn Talk,
) -> Result<bool, DataError> {
    let execution = Execution {
        stash: options.stash,
        task: options.task,
        copy_paths: options.copy_paths,
        message: options.message,
    };
    queue::execute(&find_root(current)?, &execution, open, talk, super::pipeline::say(context)).await
}
