//! `slipway node`: runs the node agent, and lists the devices and leases of a cluster's nodes.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use slipway_core::env;
use slipway_core::home::Home;
use slipway_gpu::accept::check::Level;
use slipway_gpu::vendor;
use slipway_node::agent::{Imex, Offering, Options};
use slipway_node::cluster::{Cluster, ClusterError, Eviction, Kind};
use slipway_node::config::{MigStrategy, Source};
use slipway_node::health::Policy;
use slipway_node::{accept, amd};
use slipway_operator::{Api, KubeError, Resource};
use tokio::sync::watch;

use super::Context;
use crate::Failure;
use crate::cli::node as cli;
use crate::output::{Table, print};

pub(crate) async fn run(context: &Context, verb: cli::Node) -> Result<(), Failure> {
    match verb {
        cli::Node::Run(options) => agent(context, *options).await,
        cli::Node::Converge(options) => tokio::task::block_in_place(|| super::cluster::converge(options)),
        cli::Node::Data(options) => data(options).await,
        cli::Node::Domains(options) => super::domains::run(options).await,
        cli::Node::Accept(options) => tokio::task::block_in_place(|| super::accept::accept(context, *options)),
        cli::Node::Ls(installation) => ls(context, &installation).await,
        cli::Node::Leases { node, limit, installation } => leases(context, &node, limit, &installation).await,
    }
}

async fn data(options: cli::DataDriver) -> Result<(), Failure> {
    let options = slipway_node::data::Options {
        node: options.node_name,
        kubelet: options.kubelet_dir,
        folder: options.folder,
        limit: options.limit,
    };
    let mounts = Arc::new(slipway_node::data::HostMounts);
    Ok(slipway_node::data::run(options, mounts, super::up::termination_signal()?).await?)
}

pub(super) async fn connect(installation: &cli::Installation) -> Result<Api, Failure> {
    Ok(Api::connect(installation.kubeconfig.as_deref(), installation.context.as_deref()).await?)
}

/// A string as it is, null as an empty string, any other value as JSON.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| if value.is_null() { String::new() } else { value.to_string() }, str::to_owned)
}

async fn ls(context: &Context, installation: &cli::Installation) -> Result<(), Failure> {
    let nodes = slipway_operator::nodes::nodes(&connect(installation).await?, &installation.namespace).await?;
    print(context.global.output.format, &nodes, |nodes| {
        let mut table = Table::new(&["NODE", "DEVICE", "PRODUCT", "RESOURCE", "STATE", "HELD BY"]);
        for node in nodes {
            let name = text(&node["node"]);
            let problem = ["error", "missing", "problem"].iter().map(|k| text(&node[*k])).find(|t| !t.is_empty());
            let devices = devices(node);
            if devices.is_empty() {
                let state = problem.unwrap_or_else(|| "no agent".into());
                table.row(vec![name.clone(), String::new(), String::new(), String::new(), state, String::new()]);
            }
            for mut row in devices {
                row.insert(0, name.clone());
                table.row(row);
            }
        }
        table
    });
    Ok(())
}

/// One row per device of a node: index, product, resource, state, holders.
fn devices(node: &Value) -> Vec<Vec<String>> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let (gpus, holders) = (list(&node["gpus"]), list(&node["holders"]));
    let held = |uuid: &Value| {
        let pods = holders.iter().map(|h| &h["holder"]).filter(|h| h["device"] == *uuid);
        pods.map(|h| format!("{}/{}", text(&h["namespace"]), text(&h["pod"]))).collect::<Vec<_>>().join(", ")
    };
    let mut rows = Vec::new();
    for offer in list(&node["offers"]) {
        let replicas = offer["replicas"].as_u64().map_or(String::new(), |n| format!(" x{n}"));
        for device in list(&offer["devices"]) {
            let product =
                gpus.iter().find(|g| g["uuid"] == device["gpu"]).map(|g| text(&g["name"])).unwrap_or_default();
            let fault = text(&device["fault"]);
            let state = if fault.is_empty() { "healthy".to_owned() } else { fault };
            let resource = format!("{}{replicas}", text(&offer["resource"]));
            rows.push(vec![text(&device["index"]), product, resource, state, held(&device["uuid"])]);
        }
    }
    rows
}

async fn leases(context: &Context, node: &str, limit: u32, installation: &cli::Installation) -> Result<(), Failure> {
    let leases =
        slipway_operator::nodes::leases(&connect(installation).await?, &installation.namespace, node, limit).await?;
    print(context.global.output.format, &leases, |leases| {
        let mut table = Table::new(&["POD", "CONTAINER", "RESOURCE", "DEVICE", "FROM", "TO", "ENERGY", "IDLE"]);
        for lease in leases.as_array().into_iter().flatten() {
            let time = |key: &str| lease[key].as_i64().map_or("now".to_owned(), slipway_core::clock::rfc3339);
            let seconds = |key: &str| lease[key].as_f64().unwrap_or(0.0);
            table.row(vec![
                format!("{}/{}", text(&lease["namespace"]), text(&lease["pod"])),
                text(&lease["container"]),
                text(&lease["resource"]),
                text(&lease["device"]),
                time("began"),
                time("ended"),
                format!("{:.1} kJ", seconds("joules") / 1000.0),
                format!("{:.0} s", seconds("idle_seconds")),
            ]);
        }
        table
    });
    Ok(())
}

async fn agent(context: &Context, args: cli::Run) -> Result<(), Failure> {
    let node = args.node_name.unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().to_lowercase());
    let cluster = if args.no_kube {
        None
    } else {
        Some(Arc::new(ApiServer(Api::connect(args.kubeconfig.as_deref(), args.context.as_deref()).await?)))
    };
    let variable = |name: &str| std::env::var(name).ok();
    let fixture = args.fixture.or_else(|| env::value(env::GPU_FIXTURE));
    let (fixture, amd_fixture) = by_vendor(fixture.as_deref());
    let amd = (args.amd || amd_fixture.as_deref().is_some_and(vendor::is_amd)).then_some(amd::Settings {
        naming: match args.amd_naming {
            cli::AmdNaming::Single => amd::Naming::Single,
            cli::AmdNaming::Mixed => amd::Naming::Mixed,
        },
        fixture: amd_fixture,
    });
    let home = super::accept::agent_home(context);
    let machine = Home::at(context.config.get("home").unwrap_or_default()).root().to_owned();
    let accept =
        args.accept.map(|level| acceptance(context, level, args.accept_every, args.accept_limits, fixture.as_deref()));
    let options = Options {
        node,
        offering: match args.offer {
            cli::Offer::DevicePlugin => Offering::DevicePlugin,
            cli::Offer::Dra => Offering::Dra,
        },
        fixture,
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
        gpu_settings: slipway_node::gpu_settings::Source {
            file: args.gpu_settings,
            folder: args.gpu_settings_dir,
            machine: Some(machine.join(slipway_core::gpu_settings::FILE_NAME)),
        },
        mps_root: args.mps_root,
        dra_driver: args.dra_driver,
        imex_channels: args.imex_channels.then_some(Imex {
            own_daemon: args.imex == cli::Imex::Agent,
            address: args.imex_address,
            hosts: args.imex_hosts,
        }),
        namespace: namespace(),
        home,
        machine,
        listen: args.listen,
        policy: Policy::from_variables(
            variable("DP_DISABLE_HEALTHCHECKS").as_deref(),
            variable("DP_ENABLE_HEALTHCHECKS").as_deref(),
            Duration::from_secs(args.recover_after),
        ),
        poll_interval: Duration::from_secs(5.min(args.recover_after.max(1))),
        reset_on_fault: args.reset_on_fault,
        accept: accept.transpose()?,
        amd,
    };
    Ok(slipway_node::run(options, cluster, super::up::termination_signal()?).await?)
}

/// The fixtures of NVIDIA and of AMD in a list of at most one of each. A machine with simulated GPUs has no real ones, so the fixture of one
/// vendor stands for the other one too, which has no GPU in it.
fn by_vendor(fixtures: Option<&str>) -> (Option<String>, Option<String>) {
    let Some(fixtures) = fixtures else { return (None, None) };
    let (amd, nvidia): (Vec<&str>, Vec<&str>) = fixtures.split(',').partition(|name| vendor::is_amd(name));
    let [nvidia, amd] = [nvidia, amd].map(|names| if names.is_empty() { fixtures.to_owned() } else { names.join(",") });
    (Some(nvidia), Some(amd))
}

/// The settings of acceptance: the checks run in a process of this program.
fn acceptance(
    context: &Context,
    level: Level,
    every: Option<Duration>,
    limits: Option<PathBuf>,
    fixture: Option<&str>,
) -> Result<accept::Settings, Failure> {
    let program = std::env::current_exe()
        .map_err(|source| slipway_node::NodeError::Io { what: "this program".into(), source })?;
    let mut arguments: Vec<OsString> = ["node", "accept", "--level"].map(OsString::from).to_vec();
    arguments.push(level.to_string().into());
    arguments.extend(["--home".into(), context.config.get("home").unwrap_or_default().into()]);
    if let Some(file) = limits {
        arguments.extend(["--limits".into(), file.into()]);
    }
    if let Some(fixture) = fixture {
        arguments.extend(["--fixture".into(), fixture.into()]);
    }
    Ok(accept::Settings { level, every, command: accept::Command { program, arguments } })
}

const TOKEN_REVIEW: Resource<'static> =
    Resource { group: "authentication.k8s.io", version: "v1", kind: "TokenReview", plural: "tokenreviews" };
/// The file that contains the namespace of the pod.
const OWN_NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// The namespace of this agent's installation: `$SLIPWAY_NAMESPACE`, else the pod's own; `None` outside of a cluster.
fn namespace() -> Option<String> {
    let pod_namespace = || std::fs::read_to_string(OWN_NAMESPACE).ok().map(|text| text.trim().to_owned());
    env::value(env::NAMESPACE).or_else(pod_namespace).filter(|n| !n.is_empty())
}

/// The implementation of the agent's [`Cluster`] with the API client of the operator.
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

    async fn merge(&self, kind: Kind, name: &str, patch: Value) -> Result<Value, ClusterError> {
        self.0.merge(&resource(&kind), None, name, false, &patch).await.map_err(failed)
    }

    async fn delete(&self, kind: Kind, name: &str) -> Result<(), ClusterError> {
        self.0.delete(&resource(&kind), None, name).await.map_err(failed)
    }

    async fn evict(&self, namespace: &str, pod: &str) -> Result<Eviction, ClusterError> {
        let accepted = self.0.evict(namespace, pod).await.map_err(failed)?;
        Ok(if accepted { Eviction::Accepted } else { Eviction::Blocked })
    }

    async fn event(&self, about: Value, warning: bool, reason: &str, message: &str) -> Result<(), ClusterError> {
        self.0.event(about, warning, reason, message).await.map_err(failed)
    }

    async fn user_of(&self, token: &str, audience: &str) -> Result<Option<String>, ClusterError> {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        });
        let reviewed = self.0.create(&TOKEN_REVIEW, None, &review).await.map_err(failed)?;
        let status = &reviewed["status"];
        // An API server without audience support returns no audiences; the token may then have been issued for another purpose.
        let matches = status["audiences"].as_array().is_some_and(|all| all.iter().any(|a| a == audience));
        let user = status["user"]["username"].as_str().filter(|_| matches && status["authenticated"] == true);
        Ok(user.map(str::to_owned))
    }

    fn watch(&self, kind: Kind, namespace: Option<&str>, name: &str) -> watch::Receiver<Option<Value>> {
        self.0.watch(&resource(&kind), namespace, name)
    }
}
