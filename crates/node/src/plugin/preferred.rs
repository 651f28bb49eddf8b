//! Chooses the devices that the kubelet should prefer among the available ones.
//!
//! Whole devices: the set with the best connections to each other; among equal sets the one that leaves the best connected devices for
//! the next pod. Replicas: distributed over the devices or packed onto few, depending on the configuration.

use std::collections::BTreeMap;

use slipway_gpu::link::Link;
use slipway_gpu::topology::Topology;

use crate::config::SharedPolicy;
use crate::resources::{Offer, Unit, device};

/// Score of a connection, higher is better. The values are those of NVIDIA's device plugin.
fn score(link: Link) -> u64 {
    match link {
        Link::Same => 1000,
        Link::NvLink(links) => 100 * u64::from(links.min(36)),
        Link::Board => 60,
        Link::OneSwitch => 50,
        Link::Switches => 40,
        Link::HostBridge => 30,
        Link::Node => 20,
        Link::System => 10,
    }
}

/// Score of the connection between two devices.
fn pair_score(topology: &Topology, a: &Unit, b: &Unit) -> u64 {
    let link = |links: &[Vec<Link>]| links.get(a.gpu).and_then(|row| row.get(b.gpu)).copied();
    // MIG devices cannot use NVLink. Their PCIe score prefers devices of the same GPU, which keeps other GPUs free.
    let whole = a.mig.is_none() && b.mig.is_none();
    let nvlink_score = link(&topology.links).filter(|link| whole && matches!(link, Link::NvLink(_))).map_or(0, score);
    // With NVSwitches all pairs have the same NVLink score, so the PCIe connection decides.
    nvlink_score + link(&topology.bus).map_or(0, score)
}

/// Maximum number of sets for exhaustive search; beyond it the set is built greedily.
const MAX_SETS: u64 = 20_000;

fn binomial(n: usize, k: usize) -> u64 {
    (0..k.min(n - k)).fold(1u64, |c, i| c.saturating_mul((n - i) as u64) / (i as u64 + 1))
}

/// Chooses `size` of the `available` identifiers, including all `required` ones; fewer if fewer are available.
pub(super) fn choose(
    offer: &Offer,
    topology: &Topology,
    policy: SharedPolicy,
    available: &[String],
    required: &[String],
    size: usize,
) -> Vec<String> {
    if offer.shared.is_some() {
        replicas(offer, policy, available, required, size)
    } else {
        whole(offer, topology, available, required, size)
    }
}

/// Chooses among devices that are not shared.
fn whole(offer: &Offer, topology: &Topology, available: &[String], required: &[String], size: usize) -> Vec<String> {
    // Keep the order of the offer, so that the first of equal sets is chosen.
    let units: Vec<&Unit> = offer.units.iter().filter(|u| available.contains(&u.uuid)).collect();
    if units.len() <= size {
        return units.iter().map(|u| u.uuid.clone()).collect();
    }
    let fixed: Vec<usize> = (0..units.len()).filter(|i| required.contains(&units[*i].uuid)).collect();
    let free: Vec<usize> = (0..units.len()).filter(|i| !fixed.contains(i)).collect();
    let missing = size.saturating_sub(fixed.len());
    let total_score = |set: &[usize]| -> u64 {
        let pairs = set.iter().enumerate().flat_map(|(n, a)| set[..n].iter().map(move |b| (*a, *b)));
        pairs.map(|(a, b)| pair_score(topology, units[a], units[b])).sum()
    };
    let remaining_score = |set: &[usize]| -> u64 {
        let rest: Vec<usize> = (0..units.len()).filter(|i| !set.contains(i)).collect();
        total_score(&rest)
    };
    let chosen = if binomial(free.len(), missing) <= MAX_SETS {
        let mut best: Option<((u64, u64), Vec<usize>)> = None;
        each_set(&free, missing, &mut |set| {
            let all: Vec<usize> = fixed.iter().chain(set).copied().collect();
            let value = (total_score(&all), remaining_score(&all));
            if best.as_ref().is_none_or(|(b, _)| value > *b) {
                best = Some((value, all));
            }
        });
        best.map(|(_, set)| set).unwrap_or_default()
    } else {
        let mut set = fixed;
        while set.len() < size {
            let gain = |i: &usize| set.iter().map(|s| pair_score(topology, units[*s], units[*i])).sum::<u64>();
            // Choose the first of equal candidates: `max_by_key` returns the last, so the order is reversed.
            let Some(next) = free.iter().filter(|i| !set.contains(i)).rev().max_by_key(|i| gain(i)).copied() else {
                break;
            };
            set.push(next);
        }
        set
    };
    chosen.into_iter().map(|i| units[i].uuid.clone()).collect()
}

/// Calls `visit` with every subset of `items` that has `size` elements.
fn each_set(items: &[usize], size: usize, visit: &mut dyn FnMut(&[usize])) {
    fn extend(items: &[usize], size: usize, set: &mut Vec<usize>, visit: &mut dyn FnMut(&[usize])) {
        if size == 0 {
            return visit(set);
        }
        for (n, item) in items.iter().enumerate().take((items.len() + 1).saturating_sub(size)) {
            set.push(*item);
            extend(&items[n + 1..], size - 1, set, visit);
            set.pop();
        }
    }
    extend(items, size, &mut Vec::new(), visit);
}

/// Chooses replicas of shared devices.
fn replicas(
    offer: &Offer,
    policy: SharedPolicy,
    available: &[String],
    required: &[String],
    size: usize,
) -> Vec<String> {
    let total = offer.shared.map_or(1, |s| s.replicas as usize);
    let mut chosen: Vec<String> = required.to_vec();
    // Replicas in use per device: those that are not available, plus the chosen ones.
    let mut used: BTreeMap<&str, usize> = offer.units.iter().map(|u| (u.uuid.as_str(), total)).collect();
    for id in available {
        if let Some(n) = used.get_mut(device(id)) {
            *n = n.saturating_sub(1);
        }
    }
    for id in required {
        if let Some(n) = used.get_mut(device(id)) {
            *n += 1;
        }
    }
    let mut candidates: Vec<&String> = available.iter().filter(|id| !required.contains(id)).collect();
    let order = |id: &str| offer.units.iter().position(|u| u.uuid == device(id)).unwrap_or(usize::MAX);
    candidates.sort_by_key(|id| (order(id), id.len(), (*id).clone()));
    while chosen.len() < size {
        let count = |id: &String| used.get(device(id)).copied().unwrap_or(0);
        let next = match policy {
            SharedPolicy::Distributed => candidates.iter().enumerate().min_by_key(|(_, id)| count(id)),
            SharedPolicy::Packed => candidates.iter().enumerate().rev().max_by_key(|(_, id)| count(id)),
        };
        let Some(at) = next.map(|(at, _)| at) else { break };
        let id = candidates.remove(at).clone();
        if let Some(n) = used.get_mut(device(&id)) {
            *n += 1;
        }
        chosen.push(id);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SharingStrategy;
    use crate::resources::{GPU, Shared};

    fn offer(count: usize, replicas: Option<u32>) -> Offer {
        let unit = |i: usize| Unit {
            uuid: format!("GPU-{i}"),
            index: i.to_string(),
            gpu: i,
            gpu_uuid: format!("GPU-{i}"),
            mig: None,
            numa: None,
            fault: None,
        };
        let shared = replicas.map(|replicas| Shared {
            strategy: SharingStrategy::TimeSlicing,
            replicas,
            one_only: false,
            renamed: false,
        });
        Offer { resource: GPU.into(), base: GPU.into(), shared, units: (0..count).map(unit).collect() }
    }

    /// GPUs 0-1 and 2-3 are connected by NVLink, other pairs across sockets.
    fn pairs() -> Topology {
        let link = |a: usize, b: usize| match (a, b) {
            _ if a == b => Link::Same,
            _ if a / 2 == b / 2 => Link::NvLink(4),
            _ => Link::System,
        };
        let table =
            |link: &dyn Fn(usize, usize) -> Link| (0..4).map(|a| (0..4).map(|b| link(a, b)).collect()).collect();
        let bus = table(&|a, b| if a == b { Link::Same } else { Link::System });
        Topology { simulated: true, gpus: vec![], links: table(&link), bus, numa: vec![], cpus: vec![], nics: vec![] }
    }

    fn ids(gpus: &[usize]) -> Vec<String> {
        gpus.iter().map(|i| format!("GPU-{i}")).collect()
    }

    #[test]
    fn gpus_linked_by_nvlink_are_preferred() {
        let got = choose(&offer(4, None), &pairs(), SharedPolicy::Distributed, &ids(&[1, 2, 3]), &[], 2);
        assert_eq!(got, ids(&[2, 3]));
        let got = choose(&offer(4, None), &pairs(), SharedPolicy::Distributed, &ids(&[0, 1, 2, 3]), &ids(&[1]), 2);
        assert_eq!(got, ids(&[1, 0]));
    }

    #[test]
    fn pcie_decides_when_nvlink_scores_are_equal() {
        let link = |a: usize, b: usize| if a == b { Link::Same } else { Link::NvLink(18) };
        let mut bus = pairs().links;
        for link in bus.iter_mut().flatten().filter(|l| **l == Link::NvLink(4)) {
            *link = Link::OneSwitch;
        }
        let links = (0..4).map(|a| (0..4).map(|b| link(a, b)).collect()).collect();
        let topology = Topology { links, bus, ..pairs() };
        let got = choose(&offer(4, None), &topology, SharedPolicy::Distributed, &ids(&[0, 1, 2, 3]), &ids(&[3]), 2);
        assert_eq!(got, ids(&[3, 2]));
    }

    #[test]
    fn single_gpu_is_taken_from_incomplete_pair() {
        let got = choose(&offer(4, None), &pairs(), SharedPolicy::Distributed, &ids(&[0, 2, 3]), &[], 1);
        assert_eq!(got, ids(&[0]), "2 and 3 stay available for a pod that needs two");
    }

    #[test]
    fn replicas_are_distributed_or_packed() {
        let available: Vec<String> = ["GPU-0::1", "GPU-1::0", "GPU-1::1"].map(String::from).to_vec();
        let chosen = |policy| choose(&offer(2, Some(2)), &pairs(), policy, &available, &[], 1);
        assert_eq!(chosen(SharedPolicy::Distributed), ["GPU-1::0"]);
        assert_eq!(chosen(SharedPolicy::Packed), ["GPU-0::1"]);
    }

    #[test]
    fn fewer_devices_are_chosen_if_fewer_are_available() {
        assert_eq!(choose(&offer(4, None), &pairs(), SharedPolicy::Packed, &ids(&[3]), &[], 2), ids(&[3]));
        assert_eq!(binomial(16, 8), 12870);
    }
}
