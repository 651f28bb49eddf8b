//! IMEX channels as devices for resource claims. A channel lets programs on several machines of an NVLink domain (GB200 NVL72) map each
//! other's GPU memory, through the machine's IMEX service.
//!
//! Names, attributes and parameters are those of NVIDIA's DRA driver (kubernetes-sigs/dra-driver-nvidia-gpu, `cmd/compute-domain-kubelet-plugin`
//! and `api/nvidia.com/resource/v1beta1`), so that claims and device classes written for it keep working. Preparing a claim makes the node a
//! member of the claim's ComputeDomain ([`super::membership`]), and waits until it is ready in it. Differences: the IMEX daemon runs under this
//! agent or is the service of the machine, so there is no daemon device.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use slipway_gpu::container;
use slipway_gpu::container::cdi::{self, DeviceNode, Edits, Spec};

use super::membership::Membership;
use super::prepare::allocated_devices;
use super::{Dra, api};
use crate::NodeError;
use crate::cluster::{COMPUTE_DOMAIN, Cluster, RESOURCE_CLAIM};
use crate::driver::Machine;
use crate::repo::DomainClaim;

/// Name of the DRA driver.
pub const DRIVER: &str = "compute-domain.nvidia.com";
/// The CDI kind of channels.
const KIND: &str = "slipway.dev/imex-channel";
/// File name of the CDI specification, by the convention of the CDI libraries.
const FILE: &str = "slipway.dev-imex-channel.json";
/// Folder of the channels' device nodes below the root folder of the driver.
const FOLDER: &str = "dev/nvidia-caps-imex-channels";
/// Name of the channels' major number in `/proc/devices`.
const MAJOR_NAME: &str = "nvidia-caps-imex-channels";
/// The driver supports 2048 channels.
const MAX_CHANNELS: u32 = 2048;
/// The API limits a slice to 128 devices.
const MAX_DEVICES_PER_SLICE: usize = 128;

/// How long the preparation of a claim waits for the ComputeDomain. The kubelet waits 45 s for a response (`PluginClientTimeout` of its DRA
/// manager), and attempts a failed preparation again.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Where channels are read and where their CDI specification is written, and the domain that they belong to.
#[derive(Clone)]
#[allow(missing_debug_implementations)] // `Membership` does not implement `Debug`
pub struct Settings {
    /// Root folder of the driver as this process sees it.
    pub root: PathBuf,
    /// Folder of CDI specifications.
    pub cdi: PathBuf,
    /// The ComputeDomain of this node.
    pub membership: Arc<Membership>,
    /// Whether a claim may get a channel without a ComputeDomain, which is of use only with the IMEX service of the machine.
    pub without_domain: bool,
}

/// The channels of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Channels {
    /// Major number of their device nodes.
    major: i64,
    /// Their numbers, which are also the minor numbers, in ascending order.
    ids: Vec<u32>,
}

/// The major number of character devices with this name, in the text of `/proc/devices`.
fn major(devices: &str, name: &str) -> Option<i64> {
    let lines = devices.lines().skip_while(|l| !l.starts_with("Character devices:")).skip(1);
    let mut lines = lines.take_while(|l| !l.starts_with("Block devices:"));
    lines.find_map(|l| l.trim().split_once(' ').filter(|(_, n)| *n == name)?.0.parse().ok())
}

impl Channels {
    /// Reads the channels that exist; `None` without any.
    fn read(root: &Path) -> Option<Self> {
        let id = |name: &str| name.strip_prefix("channel")?.parse().ok().filter(|id| *id < MAX_CHANNELS);
        let entries = std::fs::read_dir(root.join(FOLDER)).ok()?.flatten();
        let mut ids: Vec<u32> = entries.filter_map(|e| id(&e.file_name().to_string_lossy())).collect();
        ids.sort_unstable();
        // A root that contains only the driver's files has no /proc; fall back to the one of this process.
        let devices = |root: &Path| std::fs::read_to_string(root.join("proc/devices"));
        let devices = devices(root).or_else(|_| devices(Path::new("/"))).ok()?;
        let major = major(&devices, MAJOR_NAME)?;
        (!ids.is_empty()).then_some(Self { major, ids })
    }

    /// The CDI specification: one device with a device node for each channel.
    fn spec(&self) -> Spec {
        let node = |id: &u32| DeviceNode {
            path: format!("/{FOLDER}/channel{id}"),
            host_path: None,
            r#type: Some("c".into()),
            major: Some(self.major),
            minor: Some(i64::from(*id)),
            file_mode: Some(0o666),
            permissions: None,
            uid: None,
            gid: None,
        };
        let device = |id: &u32| cdi::Device {
            name: device_name(*id),
            annotations: Default::default(),
            container_edits: Edits { device_nodes: vec![node(id)], ..Edits::default() },
        };
        Spec {
            cdi_version: cdi::VERSION.into(),
            kind: KIND.into(),
            annotations: Default::default(),
            devices: self.ids.iter().map(device).collect(),
            container_edits: Edits::default(),
        }
    }

    /// The `spec`s of the slices, without the pool.
    fn slices(&self) -> Vec<Value> {
        let device = |id: &u32| json!({"name": device_name(*id), "attributes": {"type": {"string": "channel"}, "id": {"int": id}}});
        let devices: Vec<Value> = self.ids.iter().map(device).collect();
        devices.chunks(MAX_DEVICES_PER_SLICE).map(|d| json!({"devices": d})).collect()
    }
}

/// The name of a channel's device, such as `channel-0`.
fn device_name(id: u32) -> String {
    format!("channel-{id}")
}

/// The NVLink clique of a machine; empty if it is in no NVLink domain that spans machines.
///
/// # Errors
/// If the GPUs are not registered with the fabric, or in several cliques. Such a machine must not pass for one without a domain.
pub(super) fn clique(machine: &Machine) -> Result<String, NodeError> {
    if let Some(clique) = machine.inventory.clique_id() {
        return Ok(clique);
    }
    for gpu in &machine.inventory.gpus {
        let Some(fabric) = &gpu.fabric else { continue };
        if let Some(obstacle) = fabric.obstacle() {
            return Err(NodeError::Invalid(format!("GPU {}: {obstacle}", gpu.index)));
        }
        if fabric.cluster_uuid.is_some() {
            return Err(NodeError::Invalid("the GPUs are in different NVLink cliques".into()));
        }
    }
    Ok(String::new())
}

/// Writes the CDI specification of the channels and returns the `spec`s of their slices. A machine that is in no NVLink domain has none, and
/// offers channel 0 without a device node, as upstream does: so workloads with a ComputeDomain also run on other machines.
pub(super) fn specs(settings: &Settings, machine: &Machine) -> Result<Vec<Value>, NodeError> {
    let channels = match clique(machine) {
        Ok(clique) if clique.is_empty() => return Ok(Channels { major: 0, ids: vec![0] }.slices()),
        Ok(_) => Channels::read(&settings.root),
        Err(error) => {
            tracing::warn!(%error, "the machine offers no IMEX channels");
            None
        }
    };
    // A slice without devices replaces those that were published before.
    let Some(channels) = channels else { return Ok(vec![json!({"devices": []})]) };
    let text = serde_json::to_string(&channels.spec()).map_err(|e| NodeError::Invalid(e.to_string()))?;
    let path = settings.cdi.join(FILE);
    if std::fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) {
        container::replace(&path, &text)?;
    }
    Ok(channels.slices())
}

/// How many channels a claim gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
enum AllocationMode {
    /// The allocated channel.
    #[default]
    Single,
    /// All channels of the machine.
    All,
}

/// The parameters of a claim for a channel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ChannelConfig {
    api_version: String,
    kind: String,
    /// UID of the ComputeDomain that the claim belongs to.
    #[serde(rename = "domainID")]
    domain_id: String,
    #[serde(default, deserialize_with = "allocation_mode")]
    allocation_mode: AllocationMode,
}

/// NVIDIA's controller writes an empty mode for the default.
fn allocation_mode<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<AllocationMode, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "" | "Single" => Ok(AllocationMode::Single),
        "All" => Ok(AllocationMode::All),
        other => Err(serde::de::Error::custom(format!("allocationMode '{other}' is neither Single nor All"))),
    }
}

/// The parameters of a request in a claim's allocation; `None` without any. Parameters of the claim precede those of its class, and later ones
/// precede earlier ones.
fn config(claim: &Value, request: &str) -> Result<Option<ChannelConfig>, NodeError> {
    let all = claim["status"]["allocation"]["devices"]["config"].as_array();
    let own: Vec<&Value> = all.into_iter().flatten().filter(|c| c["opaque"]["driver"] == DRIVER).collect();
    let from = |source: &'static str| own.iter().filter(move |c| c["source"] == source);
    // A request with alternatives is named `request/alternative` in the allocation.
    let main = request.split('/').next().unwrap_or(request);
    let applies = |c: &&&Value| match c["requests"].as_array() {
        Some(requests) if !requests.is_empty() => requests.iter().any(|r| r == request || r == main),
        _ => true,
    };
    let Some(chosen) = from("FromClass").chain(from("FromClaim")).rfind(applies) else { return Ok(None) };
    let parameters = &chosen["opaque"]["parameters"];
    let invalid = |why: String| NodeError::Invalid(format!("the claim's parameters for {DRIVER} are invalid: {why}"));
    if parameters["kind"] == "ComputeDomainDaemonConfig" {
        return Err(invalid("there is no daemon device, because the node agent or the machine runs IMEX".into()));
    }
    let config: ChannelConfig = serde_json::from_value(parameters.clone()).map_err(|e| invalid(e.to_string()))?;
    if config.api_version != "resource.nvidia.com/v1beta1" || config.kind != "ComputeDomainChannelConfig" {
        return Err(invalid(format!(
            "{} {} is not resource.nvidia.com/v1beta1 ComputeDomainChannelConfig",
            config.api_version, config.kind
        )));
    }
    if config.domain_id.is_empty() {
        return Err(invalid("domainID is empty".into()));
    }
    Ok(Some(config))
}

/// Prepares a claim: makes the node ready in the claim's ComputeDomain, and returns its channels with their CDI names.
pub(super) async fn prepare<C: Cluster>(
    dra: &Dra<C>,
    settings: &Settings,
    requested: &api::Claim,
) -> Result<Vec<api::Device>, NodeError> {
    let claim = dra.cluster.get(RESOURCE_CLAIM, Some(&requested.namespace), &requested.name).await?;
    let claim = claim.filter(|c| c["metadata"]["uid"] == requested.uid.as_str());
    let claim =
        claim.ok_or_else(|| NodeError::Invalid("the claim was deleted, or recreated under the same name".into()))?;
    let state = dra.driver.subscribe().borrow().clone();
    let machine = state.machine().ok_or_else(|| NodeError::NoDriver("it is gone".into()))?;
    let channels = match clique(machine)?.as_str() {
        "" => None,
        _ => Some(Channels::read(&settings.root).ok_or_else(|| {
            NodeError::Invalid(
                "the machine has no IMEX channels: is the driver loaded with NVreg_CreateImexChannel0=1?".into(),
            )
        })?),
    };
    let offered: &[u32] = channels.as_ref().map_or(&[0], |c| &c.ids);
    let mut devices = Vec::new();
    let mut domains: Vec<String> = Vec::new();
    for result in allocated_devices(&claim, &dra.name, &dra.node)? {
        let id = offered.iter().find(|id| device_name(**id) == result.device);
        let id = *id.ok_or_else(|| NodeError::Invalid(format!("there is no device {} on this node", result.device)))?;
        let config = config(&claim, &result.request)?;
        let all = config.as_ref().is_some_and(|c| c.allocation_mode == AllocationMode::All);
        match config {
            Some(config) => domains.push(config.domain_id),
            None if settings.without_domain => {}
            None => {
                return Err(NodeError::Invalid(format!(
                    "the claim names no ComputeDomain: use the ResourceClaimTemplate of one, or parameters for {DRIVER}"
                )));
            }
        }
        let ids = match &channels {
            None => Vec::new(),
            Some(channels) if all => channels.ids.clone(),
            Some(_) => vec![id],
        };
        devices.push(api::Device {
            request_names: vec![result.request],
            pool_name: dra.node.clone(),
            device_name: result.device,
            cdi_device_ids: ids.into_iter().map(|id| format!("{KIND}={}", device_name(id))).collect(),
            share_id: result.share,
        });
    }
    domains.dedup();
    match domains.as_slice() {
        [] => {}
        [uid] => {
            let domain = find_domain(dra, uid, &requested.namespace).await?;
            let name = domain["metadata"]["name"].as_str().unwrap_or_default();
            let claim = DomainClaim {
                uid: requested.uid.clone(),
                namespace: requested.namespace.clone(),
                name: requested.name.clone(),
                domain_uid: uid.clone(),
                domain_name: name.to_owned(),
            };
            settings.membership.join(claim).await?;
            settings.membership.ready(uid, READY_TIMEOUT).await?;
        }
        _ => return Err(NodeError::Invalid("a claim cannot belong to several ComputeDomains".into())),
    }
    Ok(devices)
}

/// The ComputeDomain with this UID, which must be in the claim's namespace, so that no namespace joins the domain of another.
async fn find_domain<C: Cluster>(dra: &Dra<C>, uid: &str, namespace: &str) -> Result<Value, NodeError> {
    let domains = dra.cluster.list(COMPUTE_DOMAIN, "").await?;
    match domains.into_iter().find(|d| d["metadata"]["uid"] == uid) {
        None => Err(NodeError::Invalid(format!("there is no ComputeDomain with the UID {uid}"))),
        Some(domain) if domain["metadata"]["namespace"] != namespace => {
            Err(NodeError::Invalid(format!("the ComputeDomain {uid} is in another namespace than the claim")))
        }
        Some(domain) => Ok(domain),
    }
}

#[cfg(test)]
mod tests {
    use super::super::membership::{Daemon, Worker};
    use super::*;
    use crate::cluster::Fake;
    use crate::driver::Driver;
    use crate::driver::tests::{fabric_driver, plain_driver};
    use crate::repo;

    const PROC_DEVICES: &str = "Character devices:\n  1 mem\n195 nvidia\n508 nvidia-caps-imex-channels\n509 nvidia-caps\n\nBlock devices:\n508 x\n";

    #[test]
    fn major_number_is_that_of_a_character_device() {
        assert_eq!(major(PROC_DEVICES, MAJOR_NAME), Some(508));
        assert_eq!(major(PROC_DEVICES, "nvidia-caps"), Some(509), "the whole name is compared");
        assert_eq!(major(PROC_DEVICES, "x"), None);
        assert_eq!(major("", MAJOR_NAME), None);
    }

    #[test]
    fn existing_channels_become_devices_and_cdi_nodes() {
        let root = std::env::temp_dir().join(format!("slipway-channels-{}", slipway_core::ids::hex32()));
        assert_eq!(Channels::read(&root), None);
        for folder in [FOLDER, "proc"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::write(root.join("proc/devices"), PROC_DEVICES).unwrap();
        for name in ["channel10", "channel0", "channel9999", "other"] {
            std::fs::write(root.join(FOLDER).join(name), "").unwrap();
        }
        let channels = Channels::read(&root).unwrap();
        std::fs::remove_dir_all(root).unwrap();
        assert_eq!(channels, Channels { major: 508, ids: vec![0, 10] });
        let slices = channels.slices();
        let expected = json!({"name": "channel-10", "attributes": {"type": {"string": "channel"}, "id": {"int": 10}}});
        assert_eq!((slices.len(), &slices[0]["devices"][1]), (1, &expected));
        let spec = serde_json::to_string(&channels.spec()).unwrap();
        cdi::check(&spec).unwrap();
        let spec: Value = serde_json::from_str(&spec).unwrap();
        let node = &spec["devices"][1]["containerEdits"]["deviceNodes"][0];
        assert_eq!(
            *node,
            json!({"path": "/dev/nvidia-caps-imex-channels/channel10", "type": "c", "major": 508, "minor": 10, "fileMode": 0o666})
        );
        let many = Channels { major: 508, ids: (0..300).collect() };
        assert_eq!(
            many.slices().iter().map(|s| s["devices"].as_array().unwrap().len()).collect::<Vec<_>>(),
            [128, 128, 44]
        );
    }

    #[test]
    fn machine_whose_fabric_is_not_ready_does_not_pass_for_one_without() {
        use crate::samples::{fabric_machine, gpu, machine};
        use slipway_gpu::nvml::FabricState;
        assert_eq!(clique(&fabric_machine(FabricState::Completed)).unwrap(), "6a0b5c1d.7");
        assert_eq!(clique(&machine(vec![gpu(0, None)])).unwrap(), "");
        let error = clique(&fabric_machine(FabricState::InProgress)).unwrap_err().to_string();
        assert!(error.starts_with("GPU 0: registration with the NVLink fabric"), "{error}");
        let mut two = fabric_machine(FabricState::Completed);
        let mut other = two.inventory.gpus[0].clone();
        other.fabric.as_mut().unwrap().clique = 8;
        two.inventory.gpus.push(other);
        assert!(clique(&two).unwrap_err().to_string().contains("different NVLink cliques"));
    }

    fn claim(configs: Value) -> Value {
        json!({"status": {"allocation": {"devices": {"config": configs}}}})
    }

    fn entry(source: &str, requests: &[&str], parameters: Value) -> Value {
        json!({"source": source, "requests": requests, "opaque": {"driver": DRIVER, "parameters": parameters}})
    }

    fn channel(domain: &str, mode: &str) -> Value {
        json!({"apiVersion": "resource.nvidia.com/v1beta1", "kind": "ComputeDomainChannelConfig", "domainID": domain, "allocationMode": mode})
    }

    #[test]
    fn parameters_of_the_claim_precede_those_of_the_class() {
        let found = |configs: Value, request: &str| config(&claim(configs), request).unwrap();
        assert_eq!(found(json!([]), "channel"), None);
        let other =
            json!({"source": "FromClaim", "opaque": {"driver": "gpu.nvidia.com", "parameters": {"kind": "GpuConfig"}}});
        assert_eq!(found(json!([other]), "channel"), None);
        let both = json!([entry("FromClaim", &[], channel("a", "All")), entry("FromClass", &[], channel("b", ""))]);
        let config = found(both, "channel").unwrap();
        assert_eq!((config.domain_id.as_str(), config.allocation_mode), ("a", AllocationMode::All));
        let two =
            json!([entry("FromClaim", &["x"], channel("a", "")), entry("FromClaim", &["y"], channel("b", "Single"))]);
        assert_eq!(found(two.clone(), "x").unwrap().domain_id, "a");
        assert_eq!(found(two.clone(), "y/first").unwrap().domain_id, "b");
        assert_eq!(found(two, "z"), None);
    }

    #[test]
    fn invalid_parameters_are_refused() {
        let error = |parameters: Value| {
            config(&claim(json!([entry("FromClaim", &[], parameters)])), "channel").unwrap_err().to_string()
        };
        assert!(error(channel("", "")).contains("domainID is empty"));
        assert!(error(channel("a", "Some")).contains("neither Single nor All"));
        let mut unknown = channel("a", "");
        unknown["numNodes"] = json!(2);
        assert!(error(unknown).contains("numNodes"));
        let mut version = channel("a", "");
        version["apiVersion"] = json!("resource.nvidia.com/v1");
        assert!(error(version).contains("v1beta1"));
        assert!(error(json!({"kind": "ComputeDomainDaemonConfig", "domainID": "a"})).contains("no daemon device"));
        assert!(error(json!("text")).contains("invalid"));
    }

    /// The DRA driver of channels on a node, with the claims and domains of a test cluster.
    fn dra(cluster: &Arc<Fake>, driver: &Arc<Driver>, root: &Path) -> (Dra<Fake>, Settings) {
        let database = Arc::new(slipway_store::Database::open(&root.join("node.db"), &[repo::MIGRATION]).unwrap());
        let settings = Settings {
            root: root.to_owned(),
            cdi: root.to_owned(),
            membership: Arc::new(Membership::new(Arc::clone(&database))),
            without_domain: false,
        };
        let dra = Dra {
            cluster: Arc::clone(cluster),
            node: "n1".into(),
            name: DRIVER.into(),
            devices: crate::dra::Devices::Channels(settings.clone()),
            kubelet: root.to_owned(),
            driver: Arc::clone(driver),
            database,
            handed_out: Arc::default(),
        };
        (dra, settings)
    }

    /// Creates a claim of the namespace `team` for channel 0 with these parameters, and returns the kubelet's request for it.
    fn allocate(cluster: &Fake, name: &str, configs: Value) -> api::Claim {
        let mut object = claim(configs);
        object["metadata"] = json!({"name": name, "namespace": "team", "uid": format!("uid-{name}")});
        object["status"]["allocation"]["devices"]["results"] =
            json!([{"request": "channel", "driver": DRIVER, "pool": "n1", "device": "channel-0"}]);
        cluster.put(RESOURCE_CLAIM, Some("team"), name, Some(object));
        api::Claim { namespace: "team".into(), uid: format!("uid-{name}"), name: name.into() }
    }

    #[tokio::test]
    async fn claim_is_prepared_once_the_controller_says_that_the_node_is_ready() {
        let root = std::env::temp_dir().join(format!("slipway-prepare-{}", slipway_core::ids::hex32()));
        for folder in [FOLDER, "proc"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::write(root.join("proc/devices"), PROC_DEVICES).unwrap();
        for id in [0, 1] {
            std::fs::write(root.join(FOLDER).join(format!("channel{id}")), "").unwrap();
        }
        std::fs::write(root.join("nodes"), "10.0.0.1\n").unwrap();
        let (cluster, driver) = (Arc::new(Fake::default()), fabric_driver());
        let (dra, settings) = dra(&cluster, &driver, &root);
        let domain = |namespace: &str, ready: bool| {
            let node = json!({"name": "n1", "ipAddress": "10.0.0.1", "cliqueID": "6a0b5c1d.7", "index": 0,
                "status": if ready { "Ready" } else { "NotReady" }});
            json!({"metadata": {"name": "d", "namespace": namespace, "uid": "d1"}, "status": {"nodes": [node]}})
        };
        let requested = allocate(&cluster, "a", json!([entry("FromClaim", &["channel"], channel("d1", "All"))]));
        let error = |result: Result<Vec<api::Device>, NodeError>| result.unwrap_err().to_string();
        assert!(error(prepare(&dra, &settings, &requested).await).contains("there is no ComputeDomain"));
        cluster.put(COMPUTE_DOMAIN, Some("other"), "d", Some(domain("other", true)));
        assert!(error(prepare(&dra, &settings, &requested).await).contains("another namespace"));
        cluster.put(COMPUTE_DOMAIN, Some("other"), "d", None);
        let unnamed = allocate(&cluster, "b", json!([]));
        assert!(error(prepare(&dra, &settings, &unnamed).await).contains("names no ComputeDomain"));
        // The node reports itself, and the preparation waits for the controller.
        cluster.put(COMPUTE_DOMAIN, Some("team"), "d", Some(domain("team", false)));
        let address = Some("10.0.0.1".parse().unwrap());
        let daemon = Daemon::Host(root.join("nodes"));
        let worker = Worker::new(Arc::clone(&cluster), "n1".into(), Arc::clone(&driver), daemon, address);
        let task = tokio::spawn(worker.run(Arc::clone(&settings.membership)));
        let controller = async {
            while cluster.read(crate::cluster::NODE, None, "n1").is_none_or(|n| !n["metadata"]["labels"].is_object()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            cluster.put(COMPUTE_DOMAIN, Some("team"), "d", Some(domain("team", true)));
        };
        let (prepared, ()) = tokio::join!(prepare(&dra, &settings, &requested), controller);
        let devices = prepared.unwrap();
        assert_eq!(
            devices[0].cdi_device_ids,
            ["slipway.dev/imex-channel=channel-0", "slipway.dev/imex-channel=channel-1"]
        );
        assert_eq!(prepare(&dra, &settings, &requested).await.unwrap(), devices, "preparing is idempotent");
        task.abort();
        driver.stop();
        std::fs::remove_dir_all(root).unwrap();
    }

    #[tokio::test]
    async fn machine_without_nvlink_domain_offers_a_channel_without_device_node() {
        let root = std::env::temp_dir().join(format!("slipway-prepare-{}", slipway_core::ids::hex32()));
        std::fs::create_dir_all(&root).unwrap();
        let (cluster, driver) = (Arc::new(Fake::default()), plain_driver());
        let (dra, settings) = dra(&cluster, &driver, &root);
        let state = driver.subscribe().borrow().clone();
        let slices = specs(&settings, state.machine().unwrap()).unwrap();
        let expected = json!([{"name": "channel-0", "attributes": {"type": {"string": "channel"}, "id": {"int": 0}}}]);
        assert_eq!(slices, [json!({"devices": expected})]);
        assert!(!root.join(FILE).exists());
        let unnamed = allocate(&cluster, "a", json!([]));
        let settings = Settings { without_domain: true, ..settings };
        let devices = prepare(&dra, &settings, &unnamed).await.unwrap();
        assert!(devices.len() == 1 && devices[0].cdi_device_ids.is_empty());
        driver.stop();
        std::fs::remove_dir_all(root).unwrap();
    }
}
