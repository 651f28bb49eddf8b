//! ComputeDomains: sets of nodes whose GPUs share memory over NVLink for one workload (GB200 NVL72). The API is NVIDIA's, as are the names of
//! labels, the finalizer and the device class; its manifests apply unchanged.
//!
//! For each domain the controller creates the ResourceClaimTemplate of the workload, and collects the nodes that joined into the status of
//! the domain. A node joins by the label [`DOMAIN_LABEL`] and the annotation [`MEMBER_ANNOTATION`], which its agent sets when it prepares a
//! claim (`slipway_node::dra`). Only the controller writes a domain, so indices of nodes are unique without coordination between agents.
//!
//! Source: NVIDIA/k8s-dra-driver-gpu, `api/nvidia.com/resource/v1beta1` and `cmd/compute-domain-controller`. Differences: the IMEX daemons run
//! under the node agents, so there is no DaemonSet for each domain and no `ComputeDomainClique`.

mod cache;
mod controller;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde_json::{Value, json};
use slipway_core::compute_domain::LABEL as DOMAIN_LABEL;
use slipway_exec::ControllerMetric;

use crate::leader::Election;
use crate::participant::Participant;
use crate::{Api, Resource};

/// `resource.nvidia.com/v1beta1 ComputeDomain`.
pub const COMPUTE_DOMAIN: Resource<'static> =
    Resource { group: "resource.nvidia.com", version: "v1beta1", kind: "ComputeDomain", plural: "computedomains" };
const CLAIM_TEMPLATE: Resource<'static> = Resource {
    group: "resource.k8s.io",
    version: "v1",
    kind: "ResourceClaimTemplate",
    plural: "resourceclaimtemplates",
};
/// The CustomResourceDefinition of [`COMPUTE_DOMAIN`], as YAML.
pub const DEFINITION: &str = include_str!("../../../../deploy/helm/slipway/files/computedomains.yaml");
/// Finalizer of a domain, until its template and the labels of its nodes are removed. NVIDIA's name.
pub const FINALIZER: &str = DOMAIN_LABEL;
/// Device class of the claims: channel 0 of a node.
pub(crate) const CHANNEL_CLASS: &str = "compute-domain-default-channel.nvidia.com";
/// Name of the DRA driver that offers channels.
pub(crate) const CHANNEL_DRIVER: &str = "compute-domain.nvidia.com";
/// Name of the lease for leader election.
const LEASE_NAME: &str = "slipway-domains";

/// The UID of an object; empty if it is missing.
fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

/// The domain in the labels of a node or template; empty if it is missing.
fn domain_label(object: &Value) -> &str {
    object["metadata"]["labels"][DOMAIN_LABEL].as_str().unwrap_or_default()
}

/// A patch of the metadata that removes the finalizer of a domain and keeps those of others. It fails with 409 if the domain has changed.
pub(crate) fn without_finalizer(domain: &Value) -> Value {
    let finalizers = domain["metadata"]["finalizers"].as_array().into_iter().flatten();
    let others: Vec<&Value> = finalizers.filter(|f| **f != FINALIZER).collect();
    json!({"metadata": {"resourceVersion": domain["metadata"]["resourceVersion"], "finalizers": others}})
}

/// The controller of ComputeDomains: participates in the leader election and reconciles domains while it leads.
pub struct DomainController {
    api: Api,
    controller: Arc<controller::Controller>,
    participant: Participant,
}

impl std::fmt::Debug for DomainController {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DomainController").finish_non_exhaustive()
    }
}

impl DomainController {
    /// Starts the election and, while this process leads, the controller. `namespace` is that of the installation, and `identity` a unique
    /// name of this process.
    pub fn start(api: Api, namespace: String, identity: String) -> Self {
        let election = Election { api: api.clone(), namespace, lease: LEASE_NAME.into(), identity };
        let controller = Arc::new(controller::Controller::new(api.clone()));
        let worker = Arc::clone(&controller);
        let participant =
            Participant::start("the controller of ComputeDomains", election, move || Arc::clone(&worker).work());
        Self { api, controller, participant }
    }

    /// Stops the work and releases the lease, so that another participant can lead at once.
    pub async fn stop(&self) {
        self.participant.stop().await;
    }

    /// The metrics of this process's part in the control of domains.
    pub fn metrics(&self) -> Vec<ControllerMetric> {
        let metric = |name, help, is_counter, value| ControllerMetric { name, help, is_counter, value };
        let count = |n: usize| n as u64;
        let (reconciled, failed) = self.controller.attempts();
        vec![
            metric(
                "slipway_domains_leading",
                "Whether this process is the leader.",
                false,
                u64::from(self.participant.leads()),
            ),
            metric("slipway_domains", "ComputeDomains in the cache.", false, count(self.controller.domains())),
            metric("slipway_domains_reconciled", "Successful reconciliations.", true, reconciled),
            metric("slipway_domains_failed", "Failed reconciliations.", true, failed),
            metric("slipway_kube_requests", "Requests to the API server.", true, self.api.requests()),
        ]
    }
}
