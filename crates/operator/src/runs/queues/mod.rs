//! Queues of runs: which system is installed, which queue a run waits in, and why. Supported are Kueue, Volcano and the KAI scheduler.
//! The controller only writes what these systems read from pods, and reports what they publish; admission is theirs.
//!
//! | module | contents |
//! |---|---|
//! | `placement` | what a system reads from the pods of an attempt: labels, annotations, scheduler, pod group, topology |
//! | `topology` | which object of a system describes a topology level |
//! | `waiting` | why a pod waits in its queue |

mod placement;
mod topology;
mod waiting;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use slipway_exec::{Manifest, QueueSystem, queueing};
use tokio::sync::Mutex;

pub(super) use placement::{Gang, PLACEMENT_ANNOTATIONS, Placement, is_managed};
pub(super) use waiting::{PodQueue, VOLCANO_POD_GROUP, eviction};

use crate::{Api, KubeError, Resource};

/// The queues of runs that name none: settings of an installation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DefaultQueues {
    /// Queue of every namespace that is not in `namespaces`; runs there have no queue if unset.
    pub queue: Option<String>,
    /// The system that the queues belong to; the installed one if unset.
    pub system: Option<QueueSystem>,
    /// Queue of each of these namespaces. The empty name means that runs there have no queue.
    pub namespaces: BTreeMap<String, String>,
}

impl DefaultQueues {
    /// Parses the settings as the environment has them; `namespaces` is `NAMESPACE=QUEUE`, separated by commas.
    ///
    /// # Errors
    /// A message that names the invalid value.
    pub fn parse(queue: Option<&str>, system: Option<&str>, namespaces: Option<&str>) -> Result<Self, String> {
        let mut parsed =
            Self { queue: queue.map(str::to_owned), system: system.map(str::parse).transpose()?, ..Self::default() };
        for pair in namespaces.into_iter().flat_map(|n| n.split(',')).map(str::trim).filter(|p| !p.is_empty()) {
            let (namespace, queue) = pair.split_once('=').ok_or_else(|| format!("'{pair}' is not NAMESPACE=QUEUE"))?;
            parsed.namespaces.insert(namespace.to_owned(), queue.to_owned());
        }
        let names = parsed.queue.iter().chain(parsed.namespaces.values().filter(|q| !q.is_empty()));
        match names.into_iter().find(|name| !queueing::is_queue_name(name)) {
            Some(name) => Err(format!("'{name}' is not a valid name of a queue")),
            None => Ok(parsed),
        }
    }

    /// The queue of a namespace.
    fn in_namespace(&self, namespace: &str) -> Option<&str> {
        let queue = self.namespaces.get(namespace).or(self.queue.as_ref())?;
        (!queue.is_empty()).then_some(queue.as_str())
    }
}

/// Why the pods of a run cannot be placed.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Unplaceable {
    /// The cluster may change so that it becomes possible. Reason in one CamelCase word, and message.
    ForNow(&'static str, String),
    /// The run contradicts itself or requests what its system does not support.
    Invalid(String),
}

/// The versions of each API group of the cluster, the preferred one first.
type ApiGroups = BTreeMap<String, Vec<String>>;

/// The queue systems of a cluster.
pub(super) struct Queues {
    api: Api,
    defaults: DefaultQueues,
    /// How long the list of API groups is cached.
    ttl: Duration,
    groups: Mutex<Option<(Instant, Arc<ApiGroups>)>>,
}

impl Queues {
    pub(super) fn new(api: Api, defaults: DefaultQueues, ttl: Duration) -> Self {
        Self { api, defaults, ttl, groups: Mutex::default() }
    }

    /// The API groups of the cluster, from its discovery document (`APIGroupList`).
    async fn groups(&self) -> Result<Arc<ApiGroups>, KubeError> {
        let mut cache = self.groups.lock().await;
        if let Some((_, groups)) = cache.as_ref().filter(|(at, _)| at.elapsed() < self.ttl) {
            return Ok(Arc::clone(groups));
        }
        let document = self.api.read("/apis").await?;
        let groups = document["groups"].as_array().into_iter().flatten().filter_map(|group| {
            let preferred = group["preferredVersion"]["version"].as_str().map(str::to_owned);
            let versions = group["versions"].as_array().into_iter().flatten();
            let others = versions.filter_map(|v| v["version"].as_str().map(str::to_owned));
            let others = others.filter(|v| Some(v) != preferred.as_ref()).collect::<Vec<_>>();
            Some((group["name"].as_str()?.to_owned(), preferred.into_iter().chain(others).collect()))
        });
        let groups = Arc::new(groups.collect::<ApiGroups>());
        *cache = Some((Instant::now(), Arc::clone(&groups)));
        Ok(groups)
    }

    /// Lists the objects of a kind in the newest version that serves it; empty if no version does, or if the controller may not list them.
    async fn list(&self, group: &str, kind: &str, plural: &str) -> Result<Vec<Value>, KubeError> {
        let groups = self.groups().await?;
        for version in groups.get(group).into_iter().flatten() {
            let resource = Resource { group, version, kind, plural };
            match self.api.list(&resource, None, "", "").await {
                Err(KubeError::Refused { code: 404, .. }) => {}
                Err(KubeError::Refused { code: 403, message }) => {
                    tracing::debug!(message, "cannot list {plural}.{group}");
                    return Ok(Vec::new());
                }
                other => return other,
            }
        }
        Ok(Vec::new())
    }

    /// How the pods of a run are placed; the inner error is the reason why they cannot be.
    pub(super) async fn placement(&self, run: &Manifest) -> Result<Result<Placement, Unplaceable>, KubeError> {
        let (request, topology) = match (run.queue_request(), run.spec.topology.as_ref().map(|t| t.label()).transpose())
        {
            (Ok(request), Ok(topology)) => (request, topology),
            (Err(error), _) | (_, Err(error)) => return Ok(Err(Unplaceable::Invalid(error.to_string()))),
        };
        let queue = match request {
            Some(request) => Some((request.name, request.system)),
            None => {
                let default = self.defaults.in_namespace(&run.metadata.namespace);
                default.map(|name| (name.to_owned(), run.spec.queue_system.or(self.defaults.system)))
            }
        };
        let priority_class = run.spec.workload_priority_class.clone();
        let Some((name, system)) = queue else {
            if run.spec.queue_system.is_some() || priority_class.is_some() {
                let message = "spec.queue is missing: the namespace has no default queue";
                return Ok(Err(Unplaceable::Invalid(message.into())));
            }
            let constraint = topology.map(|(label, is_required)| topology::Constraint::affinity(label, is_required));
            return Ok(Ok(Placement::without_queue(constraint)));
        };
        let system = match installed_system(&*self.groups().await?, &name, system) {
            Ok(system) => system,
            Err(unplaceable) => return Ok(Err(unplaceable)),
        };
        if system != QueueSystem::Kueue && priority_class.is_some() {
            return Ok(Err(Unplaceable::Invalid(queueing::priority_class_message(system))));
        }
        let constraint = match topology {
            Some((label, is_required)) => Some(self.constraint(system, label, is_required).await?),
            None => None,
        };
        Ok(Ok(Placement::in_queue(name, system, priority_class, constraint)))
    }
}

/// The system of a queue: the named one if it is installed, or the only installed one.
fn installed_system(groups: &ApiGroups, queue: &str, named: Option<QueueSystem>) -> Result<QueueSystem, Unplaceable> {
    let installed: Vec<QueueSystem> =
        QueueSystem::ALL.into_iter().filter(|s| groups.contains_key(s.api_group())).collect();
    let names = installed.iter().map(|s| s.name()).collect::<Vec<_>>().join(", ");
    let found = if names.is_empty() {
        "none of kueue, volcano and kai is installed".into()
    } else {
        format!("installed: {names}")
    };
    match (named, installed.as_slice()) {
        (Some(system), installed) if installed.contains(&system) => Ok(system),
        (Some(system), _) => Err(Unplaceable::ForNow(
            "QueueSystemNotInstalled",
            format!(
                "queue {queue} belongs to {system}, but the cluster has no API group {}; {found}",
                system.api_group()
            ),
        )),
        (None, [system]) => Ok(*system),
        (None, []) => Err(Unplaceable::ForNow(
            "QueueSystemNotInstalled",
            format!("the run requests queue {queue}, but {found} in the cluster"),
        )),
        (None, _) => Err(Unplaceable::ForNow(
            "QueueSystemAmbiguous",
            format!(
                "the cluster has several queue systems ({found}); set spec.queueSystem, or runs.queue.system in the values"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_parsed_and_validated() {
        let defaults = DefaultQueues::parse(Some("all"), Some("kueue"), Some("team-a=a, team-b=")).unwrap();
        assert_eq!(defaults.system, Some(QueueSystem::Kueue));
        assert_eq!(["team-a", "team-b", "team-c"].map(|n| defaults.in_namespace(n)), [Some("a"), None, Some("all")]);
        assert_eq!(DefaultQueues::parse(None, None, None).unwrap(), DefaultQueues::default());
        for (queue, system, namespaces, expected) in [
            (Some("a b"), None, None, "'a b'"),
            (None, Some("slurm"), None, "expected kueue, volcano or kai"),
            (None, None, Some("team-a"), "NAMESPACE=QUEUE"),
            (None, None, Some("team-a=-"), "'-'"),
        ] {
            let error = DefaultQueues::parse(queue, system, namespaces).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn system_is_detected_and_errors_list_what_is_installed() {
        let groups =
            |names: &[&str]| names.iter().map(|n| ((*n).to_owned(), vec!["v1".to_owned()])).collect::<ApiGroups>();
        let system = |names: &[&str], named| installed_system(&groups(names), "team", named);
        assert_eq!(system(&["apps", "kueue.x-k8s.io"], None), Ok(QueueSystem::Kueue));
        assert_eq!(system(&["kueue.x-k8s.io", "scheduling.run.ai"], Some(QueueSystem::Kai)), Ok(QueueSystem::Kai));
        for (names, named, reason, expected) in [
            (&["apps"][..], None, "QueueSystemNotInstalled", "none of kueue, volcano and kai is installed"),
            (&["scheduling.volcano.sh"], Some(QueueSystem::Kueue), "QueueSystemNotInstalled", "installed: volcano"),
            (&["scheduling.volcano.sh", "kueue.x-k8s.io"], None, "QueueSystemAmbiguous", "installed: kueue, volcano"),
        ] {
            let Err(Unplaceable::ForNow(actual, message)) = system(names, named) else { panic!("{names:?}") };
            assert!(actual == reason && message.contains(expected), "{message}");
        }
    }
}
