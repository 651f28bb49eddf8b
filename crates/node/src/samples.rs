//! Machines and GPUs for the tests of this crate.

use std::collections::BTreeSet;

use slipway_gpu::inventory::{Gpu, Inventory, Mig, MigDevice};
use slipway_gpu::link::Link;
use slipway_gpu::nvml::{Fabric, FabricState, MigAttributes};
use slipway_gpu::topology::Topology;

use crate::driver::Machine;
use crate::health::Faults;

/// A MIG device in the slices from `start` on, with the number of its GPU instance and of its compute instance.
fn mig_device(uuid: String, profile: &str, instance: (u32, u32), slices: (u32, u32), memory_mib: u64) -> MigDevice {
    MigDevice {
        uuid,
        profile: profile.to_owned(),
        gpu_instance: instance.0,
        compute_instance: instance.1,
        start: slices.0,
        size: slices.1,
        attributes: MigAttributes { multiprocessors: 14, memory_mib, ..MigAttributes::default() },
    }
}

/// A GPU with MIG devices of these profiles, or without MIG.
pub(crate) fn gpu(index: u32, profiles: Option<&[&str]>) -> Gpu {
    let device = |(n, profile): (usize, &&str)| {
        let number = n as u32;
        mig_device(format!("MIG-{index}-{n}"), profile, (number + 1, 0), (number, 1), 9728)
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
    let device = |profile: &str, (gpu, compute): (u32, u32), slices: (u32, u32)| {
        mig_device(format!("MIG-{gpu}-{compute}"), profile, (gpu, compute), slices, 40192)
    };
    let devices = vec![
        device("1c.3g.40gb", (1, 0), (4, 4)),
        device("1c.3g.40gb", (1, 1), (4, 4)),
        device("1g.10gb", (9, 0), (0, 1)),
    ];
    Gpu { mig: Some(Mig { enabled: true, pending: true, devices }), ..gpu(0, None) }
}

/// A machine whose GPU is in the NVLink clique `6a0b5c1d.7` if its registration is complete.
pub(crate) fn fabric_machine(state: FabricState) -> Machine {
    let fabric = Fabric { state, error: None, cluster_uuid: Some("6a0b5c1d".into()), clique: 7, problems: Vec::new() };
    machine(vec![Gpu { fabric: Some(fabric), ..gpu(0, None) }])
}
