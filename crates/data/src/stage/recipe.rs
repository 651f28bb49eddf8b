//! What a stage of a pipeline has beside its dependencies and outputs: its command and parameters.

use std::path::{Path, PathBuf};

use crate::yaml::Value;

/// The variables that a stage uses, by parameter file: their keys.
pub type UsedVariables = Vec<(String, Vec<String>)>;

/// What a stage of a pipeline has beside its dependencies and outputs.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The command: a text, or a list of texts.
    pub command: Value,
    /// The folder in which it runs.
    pub wdir: PathBuf,
    /// The parameters that it depends on.
    pub params: Vec<Parameters>,
    /// Whether it counts as changed in any case.
    pub always_changed: bool,
    /// The description for people.
    pub desc: Option<String>,
    /// Data of the user.
    pub meta: Option<Value>,
    /// Whether the last run had another command.
    pub command_changed: bool,
    /// The parameters that its templates use, by file.
    pub used: UsedVariables,
    /// Whether templates produced it, so that it cannot be edited.
    pub is_parametrized: bool,
    /// The line of its definition in the `dvc.yaml`.
    pub line: usize,
}

/// Parameters of a file that a stage depends on.
#[derive(Debug, Clone)]
pub struct Parameters {
    /// The absolute path of the file.
    pub path: PathBuf,
    /// The path as it is written.
    pub written: String,
    /// The keys; empty for the whole file.
    pub keys: Vec<String>,
    /// The values at the last run.
    pub recorded: Option<Vec<(String, Value)>>,
}

impl Parameters {
    /// The path as it is shown to a user in the folder `current`.
    pub fn display(&self, current: &Path) -> String {
        crate::config::relative_path(&self.path, current).to_string_lossy().into_owned()
    }

    /// The present values, in the order of the keys or of the file.
    pub fn select(&self, values: &Value) -> Vec<(String, Value)> {
        if self.keys.is_empty() {
            return values.entries().to_vec();
        }
        let find = |key: &String| Some((key.clone(), values.find(key)?.clone()));
        self.keys.iter().filter_map(find).collect()
    }
}
