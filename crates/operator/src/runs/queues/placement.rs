//! What a queue system reads from the pods of an attempt. [`Placement::apply`] is the hook of gang scheduling: it takes all pods of an
//! attempt, which start together or not at all. What the author of the run wrote in its metadata is never overwritten.

use serde_json::{Value, json};
use slipway_exec::quantity::Quantity;
use slipway_exec::{QueueSystem, queueing};

use super::topology::{Constraint, Mechanism};

/// Domains of annotations that these systems read from pods; the pods of a run inherit such annotations from it.
pub(in crate::runs) const PLACEMENT_ANNOTATIONS: [&str; 6] = [
    "kueue.x-k8s.io",
    "provreq.kueue.x-k8s.io",
    "scheduling.volcano.sh",
    "volcano.sh",
    "scheduling.k8s.io",
    "kai.scheduler",
];
/// Label that Kueue's webhook sets on the pods that it manages.
const KUEUE_MANAGED: &str = "kueue.x-k8s.io/managed";
/// Label with the name of a group of pods that Kueue admits together.
pub(super) const KUEUE_GROUP: &str = "kueue.x-k8s.io/pod-group-name";
/// Annotation with the number of pods of Kueue's group.
const KUEUE_GROUP_SIZE: &str = "kueue.x-k8s.io/pod-group-total-count";
/// Annotation: with `false` a failed pod ends Kueue's group. The next attempt has its own group, so no replacement follows.
const KUEUE_GROUP_RETRIABLE: &str = "kueue.x-k8s.io/retriable-in-group";
/// Annotations with the topology level of Kueue's pods (`apis/kueue/v1beta1/topology_types.go`).
const KUEUE_TOPOLOGY: [&str; 2] =
    ["kueue.x-k8s.io/podset-preferred-topology", "kueue.x-k8s.io/podset-required-topology"];
/// Annotation with the name of Volcano's pod group.
pub(super) const VOLCANO_GROUP: &str = "scheduling.k8s.io/group-name";
/// Annotation with the name of KAI's `Topology`.
const KAI_TOPOLOGY: &str = "kai.scheduler/topology";
/// Annotations with the topology level of KAI's pods.
const KAI_PLACEMENT: [&str; 2] =
    ["kai.scheduler/topology-preferred-placement", "kai.scheduler/topology-required-placement"];
/// Weight of a preferred affinity; the maximum, because no other preference of a run is generated.
const AFFINITY_WEIGHT: u32 = 100;

/// The pods of an attempt, as a group.
#[derive(Debug)]
pub(in crate::runs) struct Gang<'a> {
    /// Name of the group, unique in the namespace and different for each attempt.
    pub(in crate::runs) name: &'a str,
    pub(in crate::runs) namespace: &'a str,
    /// Owner reference to the run, with which the group is deleted.
    pub(in crate::runs) owner: Value,
    /// Labels that all pods of the attempt have, and no others.
    pub(in crate::runs) labels: Value,
}

/// How the pods of an attempt are queued and placed.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::runs) struct Placement {
    queue: Option<(String, QueueSystem)>,
    /// Kueue's `WorkloadPriorityClass`.
    priority_class: Option<String>,
    constraint: Option<Constraint>,
}

impl Placement {
    pub(super) fn without_queue(constraint: Option<Constraint>) -> Self {
        Self { queue: None, priority_class: None, constraint }
    }

    pub(super) fn in_queue(
        name: String,
        system: QueueSystem,
        priority_class: Option<String>,
        constraint: Option<Constraint>,
    ) -> Self {
        Self { queue: Some((name, system)), priority_class, constraint }
    }

    /// The system of the queue; `None` without a queue.
    pub(in crate::runs) fn system(&self) -> Option<QueueSystem> {
        self.queue.as_ref().map(|(_, system)| *system)
    }

    /// Writes queue, group and topology into all pods of an attempt. Returns the pod group to create before them, if the system needs one.
    ///
    /// # Errors
    /// A message if the system cannot start the pods as a gang.
    pub(in crate::runs) fn apply(&self, gang: &Gang<'_>, pods: &mut [Value]) -> Result<Option<Value>, String> {
        let size = pods.len();
        if self.system() == Some(QueueSystem::Kai) && size > 1 {
            // Its pod grouper replaces the group of every pod that has an owner (`pkg/podgrouper/pod_controller.go`,
            // `isOrphanPodWithPodGroup`), with one that starts when the first pod fits, unless it knows the owner's kind. Without an
            // owner, a run's pods would outlive the run.
            return Err("the KAI scheduler starts pods of a run one by one: it makes gangs only for the kinds of owners that it knows, \
                        and slipway's Run is none of them; use kueue or volcano for runs of several pods"
                .into());
        }
        for pod in &mut *pods {
            match &self.queue {
                Some((name, QueueSystem::Kueue)) => self.apply_kueue(name, gang, size, pod),
                Some((name, QueueSystem::Volcano)) => {
                    put(pod, "annotations", queueing::VOLCANO_QUEUE, name);
                    put(pod, "annotations", VOLCANO_GROUP, gang.name);
                    put_scheduler(pod, "volcano");
                }
                Some((name, QueueSystem::Kai)) => {
                    if pod["metadata"]["labels"][queueing::KAI_QUEUE_BEFORE_0_6].is_null() {
                        put(pod, "labels", queueing::KAI_QUEUE, name);
                    }
                    put_scheduler(pod, "kai-scheduler");
                }
                None => {}
            }
            if let Some(constraint) = &self.constraint {
                constraint.apply(gang, pod);
            }
        }
        let is_own_group = |pod: &Value| pod["metadata"]["annotations"][VOLCANO_GROUP] == gang.name;
        match &self.queue {
            Some((name, QueueSystem::Volcano)) if pods.iter().all(is_own_group) => {
                Ok(Some(self.volcano_group(name, gang, pods)))
            }
            _ => Ok(None),
        }
    }

    fn apply_kueue(&self, queue: &str, gang: &Gang<'_>, size: usize, pod: &mut Value) {
        put(pod, "labels", queueing::KUEUE_QUEUE, queue);
        if let Some(class) = &self.priority_class {
            put(pod, "labels", queueing::KUEUE_PRIORITY_CLASS, class);
        }
        // Kueue makes a workload of a single pod without a group.
        if size > 1 {
            put(pod, "labels", KUEUE_GROUP, gang.name);
            put(pod, "annotations", KUEUE_GROUP_SIZE, &size.to_string());
            put(pod, "annotations", KUEUE_GROUP_RETRIABLE, "false");
        }
    }

    /// Volcano's `PodGroup` (`apis/pkg/apis/scheduling/v1beta1/types.go`), which starts all pods or none.
    fn volcano_group(&self, queue: &str, gang: &Gang<'_>, pods: &[Value]) -> Value {
        let mut spec = json!({"minMember": pods.len(), "queue": queue, "minResources": total_requests(pods)});
        if let Some(class) = pods.first().and_then(|p| p["spec"]["priorityClassName"].as_str()) {
            spec["priorityClassName"] = json!(class);
        }
        if let Some(Constraint { is_required, mechanism: Mechanism::VolcanoTier(tier), .. }) = &self.constraint {
            spec["networkTopology"] =
                json!({"mode": if *is_required { "hard" } else { "soft" }, "highestTierAllowed": tier});
        }
        json!({
            "apiVersion": "scheduling.volcano.sh/v1beta1", "kind": "PodGroup", "spec": spec,
            "metadata": {"name": gang.name, "namespace": gang.namespace, "labels": gang.labels, "ownerReferences": [gang.owner]},
        })
    }
}

impl Constraint {
    fn apply(&self, gang: &Gang<'_>, pod: &mut Value) {
        match &self.mechanism {
            Mechanism::KueueAnnotation => {
                put(pod, "annotations", KUEUE_TOPOLOGY[usize::from(self.is_required)], &self.label)
            }
            Mechanism::KaiTopology(name) => {
                put(pod, "annotations", KAI_TOPOLOGY, name);
                put(pod, "annotations", KAI_PLACEMENT[usize::from(self.is_required)], &self.label);
            }
            // The pod group has the constraint.
            Mechanism::VolcanoTier(_) => {}
            Mechanism::Affinity => {
                let term = json!({"labelSelector": {"matchLabels": gang.labels}, "topologyKey": self.label});
                let affinity = &mut pod["spec"]["affinity"]["podAffinity"];
                // A required term also holds for the first pod, which matches it itself: its node must have the label.
                let (field, term) = if self.is_required {
                    ("requiredDuringSchedulingIgnoredDuringExecution", term)
                } else {
                    (
                        "preferredDuringSchedulingIgnoredDuringExecution",
                        json!({"weight": AFFINITY_WEIGHT, "podAffinityTerm": term}),
                    )
                };
                match affinity[field].as_array_mut() {
                    Some(terms) => terms.push(term),
                    None => affinity[field] = json!([term]),
                }
            }
        }
    }
}

/// Whether Kueue manages the pod, by the label that its webhook sets.
pub(in crate::runs) fn is_managed(pod: &Value) -> bool {
    pod["metadata"]["labels"][KUEUE_MANAGED] == "true"
}

/// Sets a label or an annotation unless the run has it.
fn put(pod: &mut Value, field: &str, key: &str, value: &str) {
    let entry = &mut pod["metadata"][field][key];
    if entry.is_null() {
        *entry = json!(value);
    }
}

/// Sets the scheduler unless the run names one.
fn put_scheduler(pod: &mut Value, name: &str) {
    let scheduler = &mut pod["spec"]["schedulerName"];
    if scheduler.is_null() {
        *scheduler = json!(name);
    }
}

/// The sum of the resources that the pods request, for `minResources`. A limit without a request counts as one, as in the API server.
fn total_requests(pods: &[Value]) -> Value {
    let mut total = std::collections::BTreeMap::<String, f64>::new();
    for container in pods.iter().flat_map(|p| p["spec"]["containers"].as_array().into_iter().flatten()) {
        let resources = &container["resources"];
        let mut amounts = std::collections::BTreeMap::new();
        for kind in ["limits", "requests"] {
            for (name, quantity) in resources[kind].as_object().into_iter().flatten() {
                let value = serde_json::from_value::<Quantity>(quantity.clone()).ok().and_then(|q| q.value());
                amounts.insert(name.clone(), value.unwrap_or(0.0));
            }
        }
        for (name, value) in amounts {
            *total.entry(name).or_default() += value;
        }
    }
    // Fractions are rounded up to thousandths, the finest unit of CPU time.
    let text = |value: f64| {
        if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{:.0}m", (value * 1000.0).ceil()) }
    };
    json!(total.into_iter().map(|(name, value)| (name, text(value))).collect::<std::collections::BTreeMap<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(n: usize) -> Vec<Value> {
        let container = json!({"resources": {"requests": {"cpu": "1500m", "memory": "1Gi"}, "limits": {"nvidia.com/gpu": 4, "memory": "2Gi"}}});
        vec![
            json!({"metadata": {"labels": {"slipway.dev/run": "train"}, "annotations": {}}, "spec": {"containers": [container]}});
            n
        ]
    }

    fn gang() -> Gang<'static> {
        let labels = json!({"slipway.dev/run-uid": "u", "slipway.dev/attempt": "1"});
        Gang { name: "train-1", namespace: "team", owner: json!({"kind": "Run"}), labels }
    }

    fn applied(placement: &Placement, n: usize) -> (Vec<Value>, Option<Value>) {
        let mut pods = pods(n);
        let group = placement.apply(&gang(), &mut pods).unwrap();
        (pods, group)
    }

    fn in_queue(system: QueueSystem) -> Placement {
        Placement::in_queue("gpus".into(), system, None, None)
    }

    #[test]
    fn kueue_reads_labels_and_groups_of_several_pods() {
        let (pods, group) =
            applied(&Placement { priority_class: Some("high".into()), ..in_queue(QueueSystem::Kueue) }, 1);
        assert_eq!(
            pods[0]["metadata"],
            json!({"annotations": {}, "labels": {"slipway.dev/run": "train", "kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "high"}})
        );
        assert!(group.is_none() && pods[0]["spec"]["schedulerName"].is_null());
        let (pods, group) = applied(&in_queue(QueueSystem::Kueue), 3);
        for pod in &pods {
            assert_eq!(pod["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"], "train-1");
            assert_eq!(
                pod["metadata"]["annotations"],
                json!({"kueue.x-k8s.io/pod-group-total-count": "3", "kueue.x-k8s.io/retriable-in-group": "false"})
            );
        }
        assert!(group.is_none());
    }

    #[test]
    fn volcano_gets_a_pod_group_for_all_pods() {
        let constraint =
            Constraint { mechanism: Mechanism::VolcanoTier(1), ..Constraint::affinity("nvidia.com/gpu.clique", true) };
        let (pods, group) = applied(&Placement { constraint: Some(constraint), ..in_queue(QueueSystem::Volcano) }, 2);
        for pod in &pods {
            assert_eq!(pod["spec"]["schedulerName"], "volcano");
            assert!(pod["spec"]["affinity"].is_null());
            assert_eq!(
                pod["metadata"]["annotations"],
                json!({"scheduling.k8s.io/group-name": "train-1", "scheduling.volcano.sh/queue-name": "gpus"})
            );
        }
        let group = group.unwrap();
        assert_eq!(
            (&group["metadata"]["name"], &group["apiVersion"]),
            (&json!("train-1"), &json!("scheduling.volcano.sh/v1beta1"))
        );
        assert_eq!(
            group["spec"],
            json!({"minMember": 2, "queue": "gpus", "networkTopology": {"mode": "hard", "highestTierAllowed": 1},
                "minResources": {"cpu": "3", "memory": "2147483648", "nvidia.com/gpu": "8"}})
        );
        assert_eq!(applied(&in_queue(QueueSystem::Volcano), 1).1.unwrap()["spec"]["minResources"]["cpu"], "1500m");
    }

    #[test]
    fn kai_reads_a_label_and_has_no_gangs_of_runs() {
        let constraint = Constraint {
            mechanism: Mechanism::KaiTopology("racks".into()),
            ..Constraint::affinity("nvidia.com/gpu.clique", false)
        };
        let placement = Placement { constraint: Some(constraint), ..in_queue(QueueSystem::Kai) };
        let (pods, group) = applied(&placement, 1);
        assert_eq!(pods[0]["metadata"]["labels"]["kai.scheduler/queue"], "gpus");
        assert_eq!(
            pods[0]["metadata"]["annotations"],
            json!({"kai.scheduler/topology": "racks", "kai.scheduler/topology-preferred-placement": "nvidia.com/gpu.clique"})
        );
        assert!(pods[0]["spec"]["schedulerName"] == "kai-scheduler" && group.is_none());
        assert!(placement.apply(&gang(), &mut super::tests::pods(2)).unwrap_err().contains("one by one"));
    }

    #[test]
    fn metadata_of_the_run_is_kept() {
        let mut pods = pods(1);
        pods[0]["metadata"]["labels"]["runai/queue"] = json!("gpus");
        pods[0]["spec"]["schedulerName"] = json!("my-kai");
        in_queue(QueueSystem::Kai).apply(&gang(), &mut pods).unwrap();
        assert!(pods[0]["metadata"]["labels"]["kai.scheduler/queue"].is_null());
        assert_eq!(pods[0]["spec"]["schedulerName"], "my-kai");
        let mut pods = super::tests::pods(1);
        pods[0]["metadata"]["annotations"][VOLCANO_GROUP] = json!("mine");
        assert_eq!(in_queue(QueueSystem::Volcano).apply(&gang(), &mut pods).unwrap(), None, "no second group");
        assert_eq!(pods[0]["metadata"]["annotations"][VOLCANO_GROUP], "mine");
    }

    #[test]
    fn topology_is_an_annotation_of_kueue_or_an_affinity() {
        let annotation = |is_required| {
            let constraint = Constraint {
                mechanism: Mechanism::KueueAnnotation,
                ..Constraint::affinity("nvidia.com/gpu.clique", is_required)
            };
            let (pods, _) = applied(&Placement { constraint: Some(constraint), ..in_queue(QueueSystem::Kueue) }, 1);
            pods[0]["metadata"]["annotations"].clone()
        };
        assert_eq!(annotation(false), json!({"kueue.x-k8s.io/podset-preferred-topology": "nvidia.com/gpu.clique"}));
        assert_eq!(annotation(true), json!({"kueue.x-k8s.io/podset-required-topology": "nvidia.com/gpu.clique"}));
        let term = json!({"labelSelector": {"matchLabels": gang().labels}, "topologyKey": "nvidia.com/gpu.clique"});
        let placement = Placement::without_queue(Some(Constraint::affinity("nvidia.com/gpu.clique", false)));
        let (pods, _) = applied(&placement, 2);
        let expected =
            json!({"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]});
        assert!(pods.iter().all(|p| p["spec"]["affinity"] == json!({"podAffinity": expected})));
        // The affinities of the run remain.
        let placement = Placement::without_queue(Some(Constraint::affinity("nvidia.com/gpu.clique", true)));
        let mut pods = super::tests::pods(1);
        let own = json!({"topologyKey": "zone"});
        pods[0]["spec"]["affinity"] = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [own]}});
        placement.apply(&gang(), &mut pods).unwrap();
        assert_eq!(
            pods[0]["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"],
            json!([own, term])
        );
    }
}
