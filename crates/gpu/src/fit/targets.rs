//! What a model can be put on: whole cards, MIG slices, and parts of shared cards.

use super::request::{DEFAULT_GPUS_PER_NODE, Request};
use crate::GpuError;
use crate::mig::Geometry;
use crate::roofline::{Memory, Roofline};
use crate::sheet::{self, Card, Machine};

/// A GPU, a slice or a part of one.
#[derive(Debug, Clone)]
pub struct Target {
    /// The card, with the MIG profile or the part of it.
    pub name: String,
    /// Memory that it has, in bytes.
    pub memory: f64,
    /// Its theoretical ceilings.
    pub roof: Roofline,
    /// Bandwidth to another GPU of the same machine in GB/s and direction, and the name of the link.
    pub link: (f64, &'static str),
    /// Whether several of them can work on one model: MIG slices and parts of shared cards have no links.
    pub many: bool,
    /// Whether machines with it are connected by a network for GPUs.
    pub clustered: bool,
    /// The name of the card in the data sheets.
    pub card: &'static str,
    /// The machine that it is built into; `None` if builders put different numbers of it into a machine.
    pub machine: Option<Machine>,
}

const MIB: f64 = 1_048_576.0;

impl Target {
    fn card(card: &Card) -> Self {
        // Data sheets give both directions of NVLink together. PCIe 3.0 has 15.75 GB/s with 16 lanes, each generation twice as much.
        let link = if card.nvlink_gb_per_s > 0 {
            (f64::from(card.nvlink_gb_per_s) / 2.0, "NVLink")
        } else {
            (15.75 * 2f64.powi(card.pcie_generation as i32 - 3), "PCIe")
        };
        Self {
            name: card.name.into(),
            memory: card.memory_mib as f64 * MIB,
            roof: Roofline::from_card(card),
            link,
            many: true,
            clustered: card.nvlink_gb_per_s > 0,
            card: card.name,
            machine: card.machine(),
        }
    }

    /// GPUs of a machine.
    pub fn per_machine(&self, request: &Request) -> u64 {
        let largest = self.machine.map_or(u64::MAX, |m| m.gpus);
        request.gpus_per_node.unwrap_or(DEFAULT_GPUS_PER_NODE).min(largest)
    }

    /// GPUs that work together without the network between machines.
    pub fn linked(&self, request: &Request) -> u64 {
        self.machine.map_or(0, |m| m.nvlink).max(self.per_machine(request))
    }

    /// US dollars per GPU and hour, if the request gives the price. A slice or a part of a card costs the whole card.
    pub fn price(&self, request: &Request) -> Option<f64> {
        request.price.or_else(|| request.prices.get(self.card).copied())
    }

    /// A part of the target with this share of its arithmetic and bandwidth.
    fn part(&self, name: String, memory: f64, compute: f64, bandwidth: f64) -> Self {
        let mut roof = self.roof.clone();
        roof.machine.clone_from(&name);
        roof.compute.iter_mut().for_each(|c| c.tera *= compute);
        roof.memory = roof.memory.into_iter().map(|m| Memory { gigabytes: m.gigabytes * bandwidth, ..m }).collect();
        Self {
            name,
            memory,
            roof,
            link: (0.0, "none"),
            many: false,
            clustered: false,
            card: self.card,
            machine: self.machine,
        }
    }
}

/// The targets that a request considers: one card, one slice of it (`1g.10gb of H100`), or all.
///
/// # Errors
/// [`GpuError::Invalid`] if the request names a card or a slice that is not known.
pub fn targets(request: &Request) -> Result<Vec<Target>, GpuError> {
    let (profile, named) = match request.card.as_deref() {
        Some(text) => match text.split_once(" of ") {
            Some((profile, card)) => (Some(profile.trim()), Some(card.trim())),
            None => (None, Some(text)),
        },
        None => (None, None),
    };
    let unknown = |what: String| {
        GpuError::Invalid(format!("there is no data sheet for {what} (`slipway gpu spec` lists the cards)"))
    };
    let cards = match named {
        Some(name) => vec![sheet::find(name).ok_or_else(|| unknown(format!("'{name}'")))?],
        None => sheet::cards(),
    };
    if let (Some(_), Some(machine), Some(n)) = (named, cards.first().and_then(Card::machine), request.gpus_per_node)
        && n > machine.gpus
    {
        let card = cards[0].name;
        return Err(GpuError::Invalid(format!(
            "{n} GPUs per machine: the largest machine with {card} has {}, {}",
            machine.gpus, machine.name
        )));
    }
    let mut all = Vec::new();
    for card in &cards {
        let whole = Target::card(card);
        if let Some(share) = request.share {
            if profile.is_some() {
                return Err(GpuError::Invalid("a MIG slice cannot be shared in equal parts here".into()));
            }
            let part = 1.0 / share as f64;
            all.push(whole.part(format!("1/{share} of {}", card.name), whole.memory * part, part, part));
            continue;
        }
        let slices = slices(card, &whole);
        match profile {
            Some(wanted) => {
                let name = format!("{wanted} of {}", card.name);
                let found = slices.iter().find(|s| s.name == name);
                let names: Vec<&str> = slices.iter().map(|s| s.name.as_str()).collect();
                all.push(found.cloned().ok_or_else(|| {
                    GpuError::Invalid(format!("there is no slice '{name}': expected one of {}", names.join(", ")))
                })?);
            }
            None => {
                all.push(whole);
                if named.is_none() && request.gpus.is_none_or(|n| n == 1) && request.nodes.is_none() {
                    all.extend(slices);
                }
            }
        }
    }
    Ok(all)
}

/// The MIG slices of a card that are smaller than the card.
fn slices(card: &Card, whole: &Target) -> Vec<Target> {
    let Some(geometry) = Geometry::for_product(card.name, card.memory_mib) else { return Vec::new() };
    let profiles = geometry.profiles.iter().filter(|p| p.size < geometry.memory && p.is_plain());
    profiles
        .map(|p| {
            let compute = f64::from(p.multiprocessors) / f64::from(card.multiprocessors.max(1));
            let bandwidth = f64::from(p.size) / f64::from(geometry.memory.max(1));
            whole.part(format!("{} of {}", p.name, card.name), p.memory_mib as f64 * MIB, compute, bandwidth)
        })
        .collect()
}
