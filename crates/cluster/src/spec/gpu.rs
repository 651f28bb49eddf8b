//! The part of `cluster.yaml` about the machines with GPUs: `spec.gpu`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_core::gpu_driver::Choice;

use super::gpu_settings::{self, GpuSettings};
use super::workloads::{DevicePlugin, Sharing};
use super::{Cluster, Machine, is_plain};

/// GPUs of the machines with the role `gpu`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Gpu {
    /// NVIDIA's driver: a branch such as `580`, whose kernel modules are of the kind that the GPUs need; `580-open` or `580-proprietary` to
    /// choose the kind; `recommended` for the newest branch; or `none` if the driver is not managed by slipway.
    pub driver: String,
    /// Where the driver's packages come from; the archive of the machine's distribution if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_source: Option<DriverSource>,
    /// Machines whose GPUs share one NVLink domain across nodes (GB200 NVL72), as lists of machine names. Each of them runs NVIDIA's IMEX
    /// service with the addresses of its list. Leave it out where ComputeDomains start IMEX for each workload.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nvlink_domains: Vec<Vec<String>>,
    /// Enable CDI in containerd.
    pub cdi: bool,
    /// The device plugin, which advertises GPUs to the kubelet.
    pub device_plugin: DevicePlugin,
    /// How pods share a GPU; each pod gets whole GPUs if absent. `slipway gpu share plan` helps to choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sharing: Option<Sharing>,
    /// Settings of the GPUs, in the format of `slipway gpu settings`. They are kept over reboots, and restored when they are removed here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<GpuSettings>,
}

impl Default for Gpu {
    fn default() -> Self {
        Self {
            driver: "recommended".into(),
            driver_source: None,
            nvlink_domains: Vec::new(),
            cdi: true,
            device_plugin: DevicePlugin::default(),
            sharing: None,
            settings: Vec::new(),
        }
    }
}

/// Where the packages of NVIDIA's driver come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DriverSource {
    /// Ubuntu's archive: `nvidia-driver-580-server-open`.
    Ubuntu,
    /// Debian's archive, which has one branch for each release: `nvidia-driver`.
    Debian,
    /// NVIDIA's CUDA repository, which slipway adds: `nvidia-open-580`.
    Nvidia,
}

impl From<DriverSource> for slipway_core::gpu_driver::Source {
    fn from(source: DriverSource) -> Self {
        match source {
            DriverSource::Ubuntu => Self::Ubuntu,
            DriverSource::Debian => Self::Debian,
            DriverSource::Nvidia => Self::Nvidia,
        }
    }
}

impl Gpu {
    /// The desired driver.
    ///
    /// # Errors
    /// A message, if `driver` is invalid. That of a validated file is valid.
    pub fn driver_choice(&self) -> Result<Choice, String> {
        self.driver.parse().map_err(|e| format!("spec.gpu.driver: {e}"))
    }

    /// The addresses of the machines that share an NVLink domain with `machine`, in the file's order; `None` if it is in no domain.
    pub fn nvlink_peers<'a>(&self, cluster: &'a Cluster, machine: &Machine) -> Option<Vec<&'a str>> {
        let domain = self.nvlink_domains.iter().find(|d| d.contains(&machine.name))?;
        let machines = cluster.spec.machines.iter().filter(|m| domain.contains(&m.name));
        Some(machines.map(Machine::internal).collect())
    }

    /// Validates all values.
    pub(super) fn validate(&self, cluster: &Cluster) -> Result<(), String> {
        self.driver_choice()?;
        let mut seen = BTreeSet::new();
        for name in self.nvlink_domains.iter().flatten() {
            let machine = cluster.spec.machines.iter().find(|m| m.name == *name);
            if machine.is_none() && !cluster.spec.groups.iter().any(|g| g.names().any(|n| n == *name)) {
                return Err(format!("spec.gpu.nvlinkDomains: there is no machine '{name}'"));
            }
            if machine.is_some_and(|m| m.internal().parse::<IpAddr>().is_err()) {
                return Err(format!(
                    "spec.gpu.nvlinkDomains: '{name}' has a host name as its address; IMEX needs an IP address in internalAddress"
                ));
            }
            if !seen.insert(name) {
                return Err(format!("spec.gpu.nvlinkDomains: '{name}' is listed twice"));
            }
        }
        match &self.sharing {
            Some(Sharing::TimeSlices(n) | Sharing::Mps(n)) if !(2..=48).contains(n) => {
                return Err(format!("spec.gpu.sharing: {n}: use 2 to 48 pods per GPU"));
            }
            Some(Sharing::Mig(devices)) => {
                if devices.is_empty() || !devices.iter().all(|(name, n)| is_plain(name, ".+") && (1..=7).contains(n)) {
                    return Err("spec.gpu.sharing.mig: use names of profiles, with a count of 1 to 7 each".into());
                }
                if self.device_plugin == DevicePlugin::Nvidia {
                    return Err(
                        "spec.gpu.sharing.mig: MIG needs slipway's node agent; set devicePlugin: slipway".into()
                    );
                }
            }
            _ => {}
        }
        gpu_settings::validate(cluster)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::FILE;

    fn parse(gpu: &str) -> Result<Cluster, String> {
        Cluster::parse(&FILE.replace("kubernetes:", &format!("gpu: {{{gpu}}}\n  kubernetes:")))
    }

    #[test]
    fn driver_and_its_source_are_validated() {
        for driver in ["'580'", "580-open", "580-proprietary", "580-server-open", "recommended", "none"] {
            assert!(parse(&format!("driver: {driver}")).is_ok(), "{driver}");
        }
        assert!(parse("driver: 580-closed").unwrap_err().contains("spec.gpu.driver: '580-closed' is no driver"));
        let source = |text: &str| parse(&format!("driverSource: {text}"));
        assert_eq!(source("nvidia").unwrap().spec.gpu.driver_source, Some(DriverSource::Nvidia));
        assert!(source("fedora").unwrap_err().contains("fedora"));
    }

    #[test]
    fn nvlink_domains_consist_of_machines_with_addresses() {
        let cluster = parse("nvlinkDomains: [[gpu1, cp2]]").unwrap();
        let peers = |n: usize| cluster.spec.gpu.nvlink_peers(&cluster, &cluster.spec.machines[n]);
        assert_eq!(peers(2), Some(vec!["10.0.0.2", "10.0.0.3"]));
        assert_eq!(peers(0), None);
        assert!(parse("nvlinkDomains: [[gpu9]]").unwrap_err().contains("no machine 'gpu9'"));
        assert!(parse("nvlinkDomains: [[gpu1], [gpu1]]").unwrap_err().contains("twice"));
        let named = FILE
            .replace("kubernetes:", "gpu: {nvlinkDomains: [[gpu1]]}\n  kubernetes:")
            .replace("10.0.0.3", "gpu1.example.org");
        assert!(Cluster::parse(&named).unwrap_err().contains("needs an IP address"));
    }
}
