//! Applies the settings of GPUs (power limits, locked clocks, persistence, ECC, compute mode) of the file that the node label
//! `slipway.dev/gpu-settings` selects, or of the file that `cluster.yaml` has given the machine, and reports the state in a label and an
//! event. A machine that has both keeps its settings, and the state is an error.
//!
//! The settings are compared with those of the GPUs again and again, because a driver that is loaded again, a GPU that is reset, and any
//! other program can change them. A GPU that reports an error keeps its earlier settings, as all GPUs of the node then do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use slipway_core::gpu_settings::{LABEL, MACHINE_FILE};
use slipway_gpu::GpuError;
use slipway_gpu::settings::file::Desired;
use slipway_gpu::settings::{self, ComputeMode, Plan, Rule, Scope, Store, Value};
use tokio::sync::watch;

use crate::cluster::{Cluster, NODE};
use crate::config::{Config, SharingStrategy, read_text, select_file};
use crate::driver::Driver;
use crate::{NodeError, labels};

/// The label with the state of the settings: `success` or `failed`.
pub const STATE_LABEL: &str = "slipway.dev/gpu-settings.state";
const MANAGER: &str = "slipway-gpu-settings";
/// Interval in which the settings are compared, and a failed change is retried.
const INTERVAL: Duration = Duration::from_secs(15);

/// Where the desired settings come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// One file.
    pub file: Option<PathBuf>,
    /// A folder of files (a mounted ConfigMap), from which the node's label selects one.
    pub folder: Option<PathBuf>,
    /// The file that `cluster.yaml` gives the machine, as this process sees it. It need not exist.
    pub machine: Option<PathBuf>,
}

impl Source {
    /// The name and the desired settings for a node with these labels; `None` if no file is selected.
    fn read(&self, labels: &BTreeMap<String, String>) -> Result<Option<(String, Vec<Rule>)>, NodeError> {
        let selected = match &self.folder {
            Some(folder) => select_file(folder, LABEL, labels)?,
            None => self.file.clone(),
        };
        let of_machine = self.machine.clone().filter(|path| path.exists());
        let path = match (selected, of_machine) {
            (Some(selected), Some(_)) => {
                return Err(NodeError::Invalid(format!(
                    "the settings {} of the agent and {MACHINE_FILE} of cluster.yaml would both set the GPUs; remove gpuSettings from the \
                     values of the chart, or spec.gpu.settings from cluster.yaml",
                    selected.display()
                )));
            }
            (Some(path), None) | (None, Some(path)) => path,
            (None, None) => return Ok(None),
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let rules = settings::parse(&read_text(&path)?);
        let rules = rules.map_err(|e| NodeError::Config { file: path.display().to_string(), reason: e.to_string() })?;
        Ok(Some((name, rules)))
    }
}

/// Reconciles the settings of the node's GPUs with a file.
#[derive(Debug)]
pub struct Manager<C> {
    /// The API server; `None` on a machine without one.
    pub cluster: Option<Arc<C>>,
    /// Name of this node.
    pub node: String,
    /// Where the desired settings come from.
    pub source: Source,
    /// The record of earlier values, which `slipway gpu settings undo` reads too.
    pub store: Store,
    /// The driver.
    pub driver: Arc<Driver>,
    /// The device plugin's configuration, because MPS sets the compute mode.
    pub configs: watch::Receiver<Arc<Config>>,
}

/// Sharing by MPS needs the mode exclusive-process, so another desired mode would be changed back and forth.
fn check_compute_mode(rules: &[Rule], config: &Config) -> Result<(), NodeError> {
    if config.sharing.as_ref().is_none_or(|s| s.strategy != SharingStrategy::Mps) {
        return Ok(());
    }
    let conflict = rules.iter().flat_map(|r| &r.settings).find(|(_, desired)| {
        matches!(desired, Desired::Value(Value::ComputeMode(mode)) if *mode != ComputeMode::ExclusiveProcess)
    });
    match conflict {
        Some((place, _)) => Err(NodeError::Invalid(format!(
            "{place}: sharing by MPS needs the compute mode exclusive-process; leave the setting out"
        ))),
        None => Ok(()),
    }
}

/// A short description of changes.
fn summary(name: &str, plan: &Plan) -> String {
    let gpus: std::collections::BTreeSet<u32> = plan.changes.iter().map(|c| c.gpu).collect();
    let gpus: Vec<u32> = gpus.into_iter().collect();
    match plan.changes.len() {
        0 => format!("{name} is applied"),
        n => format!("{name}: {n} settings changed on GPU {}", slipway_gpu::topology::ranges(&gpus)),
    }
}

impl<C: Cluster> Manager<C> {
    /// Reconciles when the label, the driver or the time requires it; never returns while the API server watch is open.
    pub async fn run(mut self) {
        let mut node = self.cluster.as_ref().map(|c| c.watch(NODE, None, &self.node));
        let mut states = self.driver.subscribe();
        let mut restarted = true;
        let mut reported: Option<Result<String, String>> = None;
        loop {
            if states.borrow_and_update().machine().is_none() {
                restarted = true;
            } else if let Some(labels) = match &mut node {
                Some(node) => node.borrow_and_update().as_ref().map(labels::of_object),
                None => Some(BTreeMap::new()),
            } {
                match self.reconcile(&labels, restarted).await {
                    Ok(None) => reported = None,
                    Ok(Some((name, plan))) => {
                        restarted = false;
                        let outcome = Ok(summary(&name, &plan));
                        if !plan.changes.is_empty() || !matches!(reported, Some(Ok(_))) {
                            self.report(&outcome).await;
                        }
                        reported = Some(outcome);
                    }
                    // The driver is missing, or a user is changing settings now.
                    Err(NodeError::NoDriver(_) | NodeError::Gpu(GpuError::InUse(_))) => {}
                    Err(error) => {
                        let outcome = Err(error.to_string());
                        if reported.as_ref() != Some(&outcome) {
                            self.report(&outcome).await;
                        }
                        reported = Some(outcome);
                    }
                }
            }
            let label_changed = async {
                match &mut node {
                    Some(node) => node.changed().await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                open = label_changed => if !open { return },
                changed = states.changed() => if changed.is_err() { return },
                changed = self.configs.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }

    /// Applies the selected settings; `None` if none are selected.
    async fn reconcile(
        &self,
        labels: &BTreeMap<String, String>,
        restarted: bool,
    ) -> Result<Option<(String, Plan)>, NodeError> {
        let Some((name, rules)) = self.source.read(labels)? else { return Ok(None) };
        check_compute_mode(&rules, &self.configs.borrow())?;
        let store = self.store.clone();
        let plan = self.driver.with(move |nvml| {
            let lock = store.lock()?;
            let mut record = store.read()?;
            if restarted {
                // NVML cannot report locked clocks, and the driver may have been loaded again.
                record.forget_locks();
            }
            let (cards, mut notes) = settings::cards(nvml, &record)?;
            let mut plan = settings::plan(&cards, nvml.count()?, &rules, &record, Scope::Everything)?;
            plan.notes.append(&mut notes);
            settings::apply(nvml, &plan, &store, &lock)?;
            Ok(plan)
        });
        Ok(Some((name, plan.await?)))
    }

    /// Logs the outcome, and publishes it as a label and an event.
    async fn report(&self, outcome: &Result<String, String>) {
        let (state, reason, message) = match outcome {
            Ok(message) => ("success", "GPUSettingsApplied", message),
            Err(message) => ("failed", "GPUSettingsFailed", message),
        };
        tracing::info!(state, message, "GPU settings reconciled");
        let Some(cluster) = &self.cluster else { return };
        let object = json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": self.node, "labels": {STATE_LABEL: state}}});
        if let Err(error) = cluster.apply(NODE, &self.node, MANAGER, false, object).await {
            tracing::warn!(%error, "setting the label of the GPU settings failed");
        }
        let about = json!({"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": self.node});
        if let Err(error) = cluster.event(about, outcome.is_err(), reason, message).await {
            tracing::debug!(%error, "publishing the event failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn label_selects_the_settings_and_errors_have_their_place() {
        let folder = std::env::temp_dir().join(format!("slipway-gpu-settings-{}", slipway_core::ids::hex32()));
        std::fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, entry: &str| {
            std::fs::write(folder.join(name), format!("version: v1\ngpuSettings:\n- {entry}\n")).unwrap();
        };
        write("default", "{gpus: all, persistence: true}");
        write("capped", "{gpus: all, powerLimit: 80%, computeMode: default}");
        write("broken", "{gpus: all, powerLimit: fast}");
        let source = Source { folder: Some(folder.clone()), ..Source::default() };
        let read = |name: &str| source.read(&BTreeMap::from([(LABEL.to_owned(), name.to_owned())]));
        assert_eq!(source.read(&BTreeMap::new()).unwrap().unwrap().0, "default");
        let (name, rules) = read("capped").unwrap().unwrap();
        assert_eq!((name.as_str(), rules[0].settings.len()), ("capped", 2));
        let message = read("broken").unwrap_err().to_string();
        assert!(message.contains("line 3") && message.contains("'fast' is not a power limit"), "{message}");
        let message = read("missing").unwrap_err().to_string();
        assert!(message.contains("slipway.dev/gpu-settings selects 'missing'"), "{message}");
        assert!(message.contains("broken, capped, default"), "{message}");
        let mps = "version: v1\nsharing: {mps: {resources: [{name: gpu, replicas: 4}]}}\n";
        let message = check_compute_mode(&rules, &Config::parse(mps).unwrap()).unwrap_err().to_string();
        assert!(message.contains("gpuSettings[0].computeMode: sharing by MPS needs"), "{message}");
        check_compute_mode(&rules, &Config::default()).unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn machine_has_its_own_settings_unless_the_agent_has_others() {
        let folder = std::env::temp_dir().join(format!("slipway-gpu-settings-{}", slipway_core::ids::hex32()));
        std::fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, watts: u32| {
            let path = folder.join(name);
            let text = format!("version: v1\ngpuSettings: [{{gpus: all, powerLimit: {watts}}}]\n");
            std::fs::write(&path, text).unwrap();
            path
        };
        let machine = folder.join("machine.yaml");
        let alone = Source { machine: Some(machine.clone()), ..Source::default() };
        assert_eq!(alone.read(&BTreeMap::new()).unwrap(), None);
        write("machine.yaml", 300);
        assert_eq!(alone.read(&BTreeMap::new()).unwrap().unwrap().0, "machine.yaml");
        let both = Source { file: Some(write("agent.yaml", 200)), ..alone };
        let message = both.read(&BTreeMap::new()).unwrap_err().to_string();
        assert!(message.contains("remove gpuSettings") && message.contains("agent.yaml"), "{message}");
        std::fs::remove_file(machine).unwrap();
        assert_eq!(both.read(&BTreeMap::new()).unwrap().unwrap().0, "agent.yaml");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
