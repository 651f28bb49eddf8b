//! Reconciles ComputeDomains. It is level-triggered: each action depends on the cached state, not on the event that queued a key.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use slipway_core::compute_domain::{LABEL as DOMAIN_LABEL, MEMBER_ANNOTATION};
use slipway_objects::controller::{self, ControlLoop, Source};
use slipway_objects::selector::LabelSelector;
use slipway_objects::store::Selection;

use super::cache::{Cache, Key};
use super::{
    CHANNEL_CLASS, CHANNEL_DRIVER, CLAIM_TEMPLATE, COMPUTE_DOMAIN, FINALIZER, domain_label, status, uid,
    without_finalizer,
};
use crate::api::{NODE, key_of};
use crate::{Api, ApiServer, KubeError};

/// How the loop of the controller works.
const LOOP: controller::Settings = controller::Settings {
    name: "the controller of ComputeDomains",
    workers: 4,
    resync_interval: Duration::from_secs(3600),
};
/// Delay before a template whose name is taken is attempted again.
const NAME_TAKEN_DELAY: Duration = Duration::from_secs(10);
/// Delay before the label of a deleted domain is removed from a node, so that the agent can do it first.
const STALE_LABEL_DELAY: Duration = Duration::from_secs(5);
/// Label of a template that tells whom it is for; the name and value are upstream's.
const TARGET_LABEL: &str = "resource.nvidia.com/computeDomainTarget";

/// What is reconciled.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Work {
    /// A domain, by namespace and name.
    Domain(Key),
    /// A node whose label names a domain that does not exist, by name.
    Node(String),
}

pub(super) struct Controller {
    api: Api,
    domains: Cache,
    templates: Cache,
    /// Nodes with the label of a domain.
    nodes: Cache,
    control_loop: ControlLoop<Work>,
}

impl Controller {
    pub(super) fn new(api: Api) -> Self {
        Self {
            api,
            domains: Cache::default(),
            templates: Cache::default(),
            nodes: Cache::default(),
            control_loop: ControlLoop::new(LOOP),
        }
    }

    /// Number of domains in the cache.
    pub(super) fn domains(&self) -> usize {
        self.domains.len()
    }

    /// Number of successful and of failed reconciliations.
    pub(super) fn attempts(&self) -> (u64, u64) {
        self.control_loop.attempts()
    }

    /// The work of the leader: follows domains, templates and nodes and reconciles what changed, until this future is dropped. Were domains
    /// reconciled before all lists are complete, nodes would be dropped from their status.
    pub(super) async fn work(self: Arc<Self>) {
        let (store, queue) = (ApiServer::new(self.api.clone()), self.control_loop.queue());
        let with_label = || Selection { labels: LabelSelector::having(DOMAIN_LABEL), ..Selection::default() };
        let mut listed = [HashSet::new(), HashSet::new(), HashSet::new()];
        let [listed_domains, listed_templates, listed_nodes] = &mut listed;
        let domains = Source::new(&store, &COMPUTE_DOMAIN.stored(), Selection::default(), |change| {
            self.domains.apply(change, listed_domains, |before, now| {
                if let Some(domain) = now.or(before) {
                    queue.add(Work::Domain(key_of(domain)));
                }
            });
        });
        let templates = Source::new(&store, &CLAIM_TEMPLATE.stored(), with_label(), |change| {
            self.templates.apply(change, listed_templates, |before, now| {
                [before, now].into_iter().flatten().for_each(|t| self.queue_domain(domain_label(t)));
            });
        });
        let nodes = Source::new(&store, &NODE.stored(), with_label(), |change| {
            self.nodes.apply(change, listed_nodes, |before, now| {
                [before, now].into_iter().flatten().for_each(|n| self.queue_domain(domain_label(n)));
                if let Some(node) = now {
                    queue.add_after(Work::Node(key_of(node).1), STALE_LABEL_DELAY);
                }
            });
        });
        self.control_loop.run(&*self, vec![domains, templates, nodes]).await;
    }

    /// Queues the domain with this UID, if it exists.
    fn queue_domain(&self, domain: &str) {
        for domain in self.domains.find(|d| uid(d) == domain) {
            self.control_loop.queue().add(Work::Domain(key_of(&domain)));
        }
    }

    /// Moves one domain towards its desired state.
    async fn reconcile_domain(&self, key: &Key) -> Result<(), KubeError> {
        let Some(domain) = self.domains.get(key) else { return Ok(()) };
        if domain["metadata"]["deletionTimestamp"].is_string() {
            return self.clean_up(key, &domain).await;
        }
        let domain = self.add_finalizer(key, domain).await?;
        self.ensure_template(key, &domain).await?;
        let next = status::next(&domain, self.nodes.find(|n| domain_label(n) == uid(&domain)).iter());
        for problem in &next.problems {
            self.warn(&domain, "NodeNotReady", problem).await;
        }
        if domain["status"]["status"] != next.status["status"] || nodes(&domain["status"]) != nodes(&next.status) {
            let patch =
                json!({"metadata": {"resourceVersion": domain["metadata"]["resourceVersion"]}, "status": next.status});
            self.domains.put(self.api.merge(&COMPUTE_DOMAIN, Some(&key.0), &key.1, true, &patch).await?);
        }
        Ok(())
    }

    async fn add_finalizer(&self, key: &Key, domain: Value) -> Result<Value, KubeError> {
        let finalizers = domain["metadata"]["finalizers"].as_array();
        let mut finalizers = finalizers.cloned().unwrap_or_default();
        if finalizers.iter().any(|f| f == FINALIZER) {
            return Ok(domain);
        }
        finalizers.push(json!(FINALIZER));
        let version = &domain["metadata"]["resourceVersion"];
        let patch = json!({"metadata": {"resourceVersion": version, "finalizers": finalizers}});
        let changed = self.api.merge(&COMPUTE_DOMAIN, Some(&key.0), &key.1, false, &patch).await?;
        self.domains.put(changed.clone());
        Ok(changed)
    }

    /// Creates the template of a domain's claims. If another object has its name, an event of the domain reports it, and the domain stays
    /// without a template until the name is free.
    async fn ensure_template(&self, key: &Key, domain: &Value) -> Result<(), KubeError> {
        let name = domain["spec"]["channel"]["resourceClaimTemplate"]["name"].as_str().unwrap_or_default();
        let is_own = |t: &Value| domain_label(t) == uid(domain) && !t["metadata"]["deletionTimestamp"].is_string();
        if self.templates.get(&(key.0.clone(), name.to_owned())).is_some_and(|t| is_own(&t)) {
            return Ok(());
        }
        match self.api.create(&CLAIM_TEMPLATE, Some(&key.0), &template(domain, name)).await {
            Ok(created) => {
                self.templates.put(created);
                self.event(domain, false, "TemplateCreated", &format!("ResourceClaimTemplate {name}")).await;
            }
            Err(KubeError::Refused { code: 409, .. }) => {
                let existing = self.api.get(&CLAIM_TEMPLATE, Some(&key.0), name).await?;
                // It was created before, but the watch has not delivered it yet.
                if existing.as_ref().is_some_and(is_own) {
                    return Ok(());
                }
                let message =
                    format!("there is already a ResourceClaimTemplate {name} that does not belong to this domain");
                self.warn(domain, "TemplateNameTaken", &message).await;
                self.control_loop.queue().add_after(Work::Domain(key.clone()), NAME_TAKEN_DELAY);
            }
            // The name is invalid, or a quota or policy rejects the template.
            Err(KubeError::Refused { code: 400 | 403 | 422, message }) => {
                self.warn(domain, "TemplateRejected", &message).await;
                self.control_loop.queue().add_after(Work::Domain(key.clone()), NAME_TAKEN_DELAY);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Removes what belongs to a domain that is being deleted, and at the end the finalizer. Killed in between, it starts anew.
    async fn clean_up(&self, key: &Key, domain: &Value) -> Result<(), KubeError> {
        let is_present = domain["metadata"]["finalizers"].as_array().is_some_and(|f| f.iter().any(|f| f == FINALIZER));
        if !is_present {
            return Ok(());
        }
        // Labels in the cache may lag behind; what is missed here is removed later as a label of a deleted domain.
        for template in self.templates.find(|t| domain_label(t) == uid(domain)) {
            let (namespace, name) = key_of(&template);
            self.api.delete(&CLAIM_TEMPLATE, Some(&namespace), &name).await?;
        }
        for node in self.nodes.find(|n| domain_label(n) == uid(domain)) {
            self.remove_label(&node).await?;
        }
        match self.api.merge(&COMPUTE_DOMAIN, Some(&key.0), &key.1, false, &without_finalizer(domain)).await {
            Ok(_) | Err(KubeError::Refused { code: 404, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes the label of a domain that does not exist from a node, which an agent that was stopped or removed has left behind.
    async fn remove_stale_label(&self, name: &str) -> Result<(), KubeError> {
        let Some(node) = self.nodes.get(&(String::new(), name.to_owned())) else { return Ok(()) };
        let domain = domain_label(&node);
        if !self.domains.find(|d| uid(d) == domain).is_empty() {
            return Ok(());
        }
        // The cache may not contain a new domain yet.
        if self.api.list(&COMPUTE_DOMAIN, None, "", "").await?.iter().any(|d| uid(d) == domain) {
            return Ok(());
        }
        self.remove_label(&node).await
    }

    async fn remove_label(&self, node: &Value) -> Result<(), KubeError> {
        let patch = json!({"metadata": {
            // The node may have joined another domain meanwhile.
            "resourceVersion": node["metadata"]["resourceVersion"],
            "labels": {DOMAIN_LABEL: null}, "annotations": {MEMBER_ANNOTATION: null},
        }});
        match self.api.merge(&NODE, None, &key_of(node).1, false, &patch).await {
            Ok(_) | Err(KubeError::Refused { code: 404, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn warn(&self, domain: &Value, reason: &str, message: &str) {
        self.event(domain, true, reason, message).await;
    }

    async fn event(&self, domain: &Value, warning: bool, reason: &str, message: &str) {
        let metadata = &domain["metadata"];
        let about = json!({
            "apiVersion": COMPUTE_DOMAIN.api_version(), "kind": COMPUTE_DOMAIN.kind,
            "namespace": metadata["namespace"], "name": metadata["name"], "uid": metadata["uid"],
        });
        tracing::info!(namespace = %metadata["namespace"], domain = %metadata["name"], reason, message);
        if let Err(error) = self.api.event(about, warning, reason, message).await {
            tracing::debug!(%error, "cannot record an event");
        }
    }
}

impl controller::Controller for Controller {
    type Key = Work;
    type Error = KubeError;

    async fn reconcile(&self, work: &Work) -> Result<(), KubeError> {
        match work {
            Work::Domain(key) => self.reconcile_domain(key).await,
            Work::Node(name) => self.remove_stale_label(name).await,
        }
    }

    async fn all(&self) -> Vec<Work> {
        let nodes = self.nodes.keys().into_iter().map(|(_, name)| Work::Node(name));
        self.domains.keys().into_iter().map(Work::Domain).chain(nodes).collect()
    }

    fn is_expected(&self, error: &KubeError) -> bool {
        // Another client wrote first, and the watch delivers the new version.
        matches!(error, KubeError::Refused { code: 409, .. })
    }
}

/// The nodes of a status; none and an empty list are the same.
fn nodes(status: &Value) -> &[Value] {
    status["nodes"].as_array().map_or(&[], Vec::as_slice)
}

/// The template of a domain's claims, as upstream's (`templates/compute-domain-workload-claim-template.tmpl.yaml`).
fn template(domain: &Value, name: &str) -> Value {
    let metadata = &domain["metadata"];
    let mode = domain["spec"]["channel"]["allocationMode"].as_str().unwrap_or("Single");
    json!({
        "apiVersion": CLAIM_TEMPLATE.api_version(), "kind": CLAIM_TEMPLATE.kind,
        "metadata": {
            "name": name, "namespace": metadata["namespace"],
            "labels": {DOMAIN_LABEL: metadata["uid"], TARGET_LABEL: "Workload"},
            // Deletes the template with its domain even if no controller runs.
            "ownerReferences": [{
                "apiVersion": COMPUTE_DOMAIN.api_version(), "kind": COMPUTE_DOMAIN.kind,
                "name": metadata["name"], "uid": metadata["uid"], "controller": true,
            }],
        },
        "spec": {"spec": {"devices": {
            "requests": [{"name": "channel", "exactly": {"deviceClassName": CHANNEL_CLASS}}],
            "config": [{"requests": ["channel"], "opaque": {"driver": CHANNEL_DRIVER, "parameters": {
                "apiVersion": COMPUTE_DOMAIN.api_version(), "kind": "ComputeDomainChannelConfig",
                "domainID": metadata["uid"], "allocationMode": mode,
            }}}],
        }}},
    })
}
