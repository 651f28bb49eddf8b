//! The commands of stages, each in a process of the user's shell.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::error::DataError;
use crate::stage::Stage;
use crate::yaml::Value;

/// What is needed to run the commands of a stage.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// The name of the stage for the user.
    pub(crate) address: String,
    pub(crate) commands: Vec<String>,
    /// The folder in which the commands run.
    pub(crate) folder: PathBuf,
    /// The root of the project.
    pub(crate) root: PathBuf,
    /// Variables of the environment beside those of this process.
    pub(crate) variables: Vec<(String, String)>,
}

/// The commands of a stage: the items of a list, or the lines of a text.
pub(crate) fn commands(command: &Value) -> Vec<String> {
    match command {
        Value::List(items) => items.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        value => value.as_str().unwrap_or_default().lines().map(str::to_owned).collect(),
    }
}

impl Job {
    /// The job of a stage in the project `root`.
    pub(crate) fn new(stage: &Stage, address: String, root: &Path) -> Option<Self> {
        let recipe = stage.recipe.as_ref()?;
        Some(Self {
            address,
            commands: commands(&recipe.command),
            folder: recipe.wdir.clone(),
            root: root.to_owned(),
            variables: Vec::new(),
        })
    }

    /// Runs the commands one after the other until one fails. `start` is called with each before it runs. With `line`, the output is
    /// given to it line by line, otherwise it goes where that of this process goes.
    ///
    /// # Errors
    /// [`DataError::Command`] for the command that failed.
    pub(crate) fn run(&self, start: &dyn Fn(&str), line: Option<&(dyn Fn(&str) + Sync)>) -> Result<(), DataError> {
        for command in &self.commands {
            start(command);
            let mut child = self.spawn(command, line.is_some())?;
            if let Some(line) = line {
                std::thread::scope(|scope| {
                    for stream in [child.stdout.take().map(boxed), child.stderr.take().map(boxed)].into_iter().flatten()
                    {
                        scope.spawn(move || forward(stream, line));
                    }
                });
            }
            let status = child.wait().map_err(DataError::io(&self.folder))?;
            if !status.success() {
                let code = status.code().or(status.signal().map(|signal| -signal)).unwrap_or(-1);
                return Err(DataError::Command { command: command.clone(), code });
            }
        }
        Ok(())
    }

    fn spawn(&self, command: &str, piped: bool) -> Result<Child, DataError> {
        let shell = std::env::var("SHELL").ok().filter(|shell| !shell.is_empty()).unwrap_or_else(|| "/bin/sh".into());
        let mut process = Command::new(&shell);
        // The user's settings of the shell must not change what a command does.
        match Path::new(&shell).file_name().and_then(|name| name.to_str()) {
            Some("zsh") => process.arg("--no-rcs"),
            Some("bash") => process.args(["--noprofile", "--norc"]),
            Some("fish") => process.arg("--no-config"),
            _ => &mut process,
        };
        process.arg("-c").arg(command).current_dir(&self.folder).env("DVC_STAGE", &self.address);
        process.envs(self.variables.iter().map(|(name, value)| (name, value)));
        if std::env::var_os("DVC_ROOT").is_none() {
            process.env("DVC_ROOT", &self.root);
        }
        if piped {
            process.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        let failed = |error: std::io::Error| {
            let reason =
                if self.folder.is_dir() { format!("{shell}: {error}") } else { "its folder does not exist".into() };
            DataError::Invalid(format!("the command of stage '{}' cannot be started: {reason}", self.address))
        };
        process.spawn().map_err(failed)
    }
}

fn boxed(stream: impl Read + Send + 'static) -> Box<dyn Read + Send> {
    Box::new(stream)
}

fn forward(stream: Box<dyn Read + Send>, line: &(dyn Fn(&str) + Sync)) {
    let mut reader = BufReader::new(stream);
    let mut bytes = Vec::new();
    // A line that is too long is given in parts; a stream that cannot be read has ended.
    while reader.by_ref().take(64 << 10).read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
        line(String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']));
        bytes.clear();
    }
}
