//! `slipway node`: wiring of the node agent.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use slipway_core::env;
use slipway_core::home::Home;
use slipway_node::agent::{Offering, Options};
use slipway_node::cluster::{Cluster, ClusterError, Eviction, Kind};
use slipway_node::config::{MigStrategy, Source};
use slipway_node::health::Policy;
use slipway_operator::{Api, KubeError, Resource};
use tokio::sync::watch;

use super::Context;
use crate::Failure;
use crate::cli::node as cli;

pub(crate) async fn run(context: &Context, verb: cli::Node) -> Result<(), Failure> {
    match verb {
        cli::Node::Run(options) => agent(context, *options).await,
    }
}

async fn agent(context: &Context, args: cli::Run) -> Result<(), Failure> {
    let node = args.node_name.unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().to_lowercase());
    let cluster = if args.no_kube {
        None
    } else {
        Some(Arc::new(ApiServer(Api::connect(args.kubeconfig.as_deref(), args.context.as_deref()).await?)))
    };
    let variable = |name: &str| std::env::var(name).ok();
    let options = Options {
        node,
        offering: match args.offer {
            cli::Offer::DevicePlugin => Offering::DevicePlugin,
            cli::Offer::Dra => Offering::Dra,
        },
        fixture: args.fixture.or_else(|| env::value(env::GPU_FIXTURE)),
        kubelet: args.kubelet_dir,
        cdi: args.cdi_dir,
        driver_root: args.driver_root_here.unwrap_or_else(|| args.driver_root.clone()),
        host_driver_root: args.driver_root,
        config: Source {
            file: args.config_file,
            folder: args.config_dir,
            mig: args.mig_strategy.map(|s| match s {
                cli::MigStrategy::None => MigStrategy::None,
                cli::MigStrategy::Single => MigStrategy::Single,
                cli::MigStrategy::Mixed => MigStrategy::Mixed,
            }),
        },
        mig_config: args.mig_config,
        mps_root: args.mps_root,
        dra_driver: args.dra_driver,
        home: Home::at(context.config.get("home").unwrap_or_default()).root().join("node"),
        listen: args.listen,
        policy: Policy::from_variables(
            variable("DP_DISABLE_HEALTHCHECKS").as_deref(),
            variable("DP_ENABLE_HEALTHCHECKS").as_deref(),
            Duration::from_secs(args.recover_after),
        ),
        look: Duration::from_secs(5.min(args.recover_after.max(1))),
    };
    Ok(slipway_node::run(options, cluster, super::up::terminated()?).await?)
}

/// The agent's view of a cluster, on the operator's client.
struct ApiServer(Api);

fn resource(kind: &Kind) -> Resource<'static> {
    Resource { group: kind.group, version: kind.version, kind: kind.kind, plural: kind.plural }
}

fn failed(error: KubeError) -> ClusterError {
    match error {
        KubeError::Refused { code, message } => ClusterError::Refused { code, message },
        other => ClusterError::Unreachable(other.to_string()),
    }
}

impl Cluster for ApiServer {
    async fn get(&self, kind: Kind, namespace: Option<&str>, name: &str) -> Result<Option<Value>, ClusterError> {
        self.0.get(&resource(&kind), namespace, name).await.map_err(failed)
    }

    async fn list(&self, kind: Kind, fields: &str) -> Result<Vec<Value>, ClusterError> {
        self.0.list(&resource(&kind), None, fields, "").await.map_err(failed)
    }

    async fn apply(
        &self,
        kind: Kind,
        name: &str,
        manager: &str,
        status: bool,
        object: Value,
    ) -> Result<Value, ClusterError> {
        self.0.apply(&resource(&kind), None, name, manager, status, &object, false).await.map_err(failed)
    }

    async fn delete(&self, kind: Kind, name: &str) -> Result<(), ClusterError> {
        self.0.delete(&resource(&kind), None, name).await.map_err(failed)
    }

    async fn evict(&self, namespace: &str, pod: &str) -> Result<Eviction, ClusterError> {
        let going = self.0.evict(namespace, pod).await.map_err(failed)?;
        Ok(if going { Eviction::Going } else { Eviction::Blocked })
    }

    async fn event(&self, about: Value, warning: bool, reason: &str, message: &str) -> Result<(), ClusterError> {
        self.0.event(about, warning, reason, message).await.map_err(failed)
    }

    fn watch(&self, kind: Kind, name: &str) -> watch::Receiver<Option<Value>> {
        self.0.watch(&resource(&kind), None, name)
    }
}
