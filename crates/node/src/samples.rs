//! Machines and GPUs for the tests of this crate.

use std::collections::BTreeSet;

use slipway_gpu::inventory::{Gpu, Inventory, Mig, MigDevice};
use slipway_gpu::link::Link;
use slipway_gpu::nvml::{Fabric, FabricState, MigAttributes};
use slipway_gpu::topology::Topology;

use crate::driver::Machine;
use crate::health::Faults;

/// A GPU with MIG devices of these profiles, or without MIG.
pub(crate) fn gpu(index: u32, profiles: Option<&[&str]>) -> Gpu {
    let device = |(n, profile): (usize, &&str)| MigDevice {
        uuid: format!("MIG-{index}-{n}"),
        profile: (*profile).to_owned(),
        gpu_instance: n as u32 + 1,
        compute_instance: 0,
        start: n as u32,
        size: 1,
        attributes: MigAttributes { multiprocessors: 14, memory_mib: 9728, ..MigAttributes::default() },
    };
    let mig =
        profiles.map(|p| Mig { enabled: true, pending: true, devices: p.iter().enumerate().map(device).collect() });
    Gpu {
        index,
        uuid: format!("GPU-{index}"),
        name: "NVIDIA A100-SXM4-80GB".into(),
        minor: Some(index),
        compute_capability: Some("8.0".into()),
        memory_total: Some(81920 << 20),
        mig,
        ..Gpu::default()
    }
}

/// A machine with these GPUs, all healthy.
pub(crate) fn machine(gpus: Vec<Gpu>) -> Machine {
    let count = gpus.len();
    let topology = Topology {
        simulated: true,
        gpus: Vec::new(),
        links: vec![vec![Link::System; count]; count],
        bus: vec![vec![Link::System; count]; count],
        numa: vec![Some(0); count],
        cpus: Vec::new(),
        nics: Vec::new(),
    };
    let inventory =
        Inventory { simulated: true, driver: "580.95.05".into(), nvml: String::new(), cuda: "13.0".into(), gpus };
    Machine {
        inventory,
        topology,
        faults: Faults::default(),
        draining: BTreeSet::new(),
        cdi: None,
        layouts: Vec::new(),
        claimed: BTreeSet::new(),
    }
}

/// A GPU with two compute instances in a `3g.40gb` at slice 4, and a `1g.10gb` at slice 0.
pub(crate) fn compute_instances() -> Gpu {
    let device = |profile: &str, gpu_instance: u32, compute_instance: u32, start: u32, size: u32| MigDevice {
        uuid: format!("MIG-{gpu_instance}-{compute_instance}"),
        profile: profile.into(),
        gpu_instance,
        compute_instance,
        start,
        size,
        attributes: MigAttributes { multiprocessors: 14, memory_mib: 40192, ..MigAttributes::default() },
    };
    let devices =
        vec![device("1c.3g.40gb", 1, 0, 4, 4), device("1c.3g.40gb", 1, 1, 4, 4), device("1g.10gb", 9, 0, 0, 1)];
    Gpu { mig: Some(Mig { enabled: true, pending: true, devices }), ..gpu(0, None) }
}

/// A machine whose GPU is in the NVLink clique `6a0b5c1d.7` if its registration is complete.
pub(crate) fn fabric_machine(state: FabricState) -> Machine {
    let fabric = Fabric { state, error: None, cluster_uuid: Some("6a0b5c1d".into()), clique: 7, problems: Vec::new() };
    machine(vec![Gpu { fabric: Some(fabric), ..gpu(0, None) }])
}
