//! Which devices the kubelet should take of those it could.
//!
//! Whole devices: those that are connected best with each other, and among equals those that leave the best connected for the
//! next pod. Replicas: spread over the devices, or packed onto few, as the configuration says.

use std::collections::BTreeMap;

use slipway_gpu::topology::{Link, Topology};

use crate::config::SharedPolicy;
use crate::resources::{Offer, Unit, device};

/// How good a connection is. Of NVLinks every one counts; the rest is ordered by what is between. The numbers are upstream's.
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

fn between(topology: &Topology, a: &Unit, b: &Unit) -> u64 {
    let of = |links: &[Vec<Link>]| links.get(a.gpu).and_then(|row| row.get(b.gpu)).copied();
    // MIG devices cannot use NVLink; they are kept together, so that GPUs stay whole.
    let whole = a.mig.is_none() && b.mig.is_none();
    let by_nvlink = of(&topology.links).filter(|link| whole && matches!(link, Link::NvLink(_))).map_or(0, score);
    // Behind NVSwitches all are linked alike: what they share on the bus decides.
    by_nvlink + of(&topology.bus).map_or(0, score)
}

/// Sets that are looked at one by one; beyond, the best partner is added again and again.
const MOST_SETS: u64 = 20_000;

fn binomial(n: usize, k: usize) -> u64 {
    (0..k.min(n - k)).fold(1u64, |c, i| c.saturating_mul((n - i) as u64) / (i as u64 + 1))
}

/// The devices to prefer: `size` of `available`, with all of `required` among them. Fewer only if there are not so many.
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

fn whole(offer: &Offer, topology: &Topology, available: &[String], required: &[String], size: usize) -> Vec<String> {
    // In the offer's order, so that equals are taken from the front.
    let units: Vec<&Unit> = offer.units.iter().filter(|u| available.contains(&u.uuid)).collect();
    if units.len() <= size {
        return units.iter().map(|u| u.uuid.clone()).collect();
    }
    let fixed: Vec<usize> = (0..units.len()).filter(|i| required.contains(&units[*i].uuid)).collect();
    let free: Vec<usize> = (0..units.len()).filter(|i| !fixed.contains(i)).collect();
    let missing = size.saturating_sub(fixed.len());
    let inside = |set: &[usize]| -> u64 {
        let pairs = set.iter().enumerate().flat_map(|(n, a)| set[..n].iter().map(move |b| (*a, *b)));
        pairs.map(|(a, b)| between(topology, units[a], units[b])).sum()
    };
    let left = |set: &[usize]| -> u64 {
        let rest: Vec<usize> = (0..units.len()).filter(|i| !set.contains(i)).collect();
        inside(&rest)
    };
    let chosen = if binomial(free.len(), missing) <= MOST_SETS {
        let mut best: Option<((u64, u64), Vec<usize>)> = None;
        each_set(&free, missing, &mut |set| {
            let all: Vec<usize> = fixed.iter().chain(set).copied().collect();
            let value = (inside(&all), left(&all));
            if best.as_ref().is_none_or(|(b, _)| value > *b) {
                best = Some((value, all));
            }
        });
        best.map(|(_, set)| set).unwrap_or_default()
    } else {
        let mut set = fixed;
        while set.len() < size {
            let gain = |i: &usize| set.iter().map(|s| between(topology, units[*s], units[*i])).sum::<u64>();
            // The first of the best: max_by_key would take the last.
            let Some(next) = free.iter().filter(|i| !set.contains(i)).rev().max_by_key(|i| gain(i)).copied() else {
                break;
            };
            set.push(next);
        }
        set
    };
    chosen.into_iter().map(|i| units[i].uuid.clone()).collect()
}

fn each_set(of: &[usize], size: usize, visit: &mut dyn FnMut(&[usize])) {
    fn go(of: &[usize], size: usize, set: &mut Vec<usize>, visit: &mut dyn FnMut(&[usize])) {
        if size == 0 {
            return visit(set);
        }
        for (n, one) in of.iter().enumerate().take((of.len() + 1).saturating_sub(size)) {
            set.push(*one);
            go(&of[n + 1..], size - 1, set, visit);
            set.pop();
        }
    }
    go(of, size, &mut Vec::new(), visit);
}

fn replicas(
    offer: &Offer,
    policy: SharedPolicy,
    available: &[String],
    required: &[String],
    size: usize,
) -> Vec<String> {
    let total = offer.shared.map_or(1, |s| s.replicas as usize);
    let mut chosen: Vec<String> = required.to_vec();
    // Replicas in use: those that are not available, and those that are chosen on the way.
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
    let mut left: Vec<&String> = available.iter().filter(|id| !required.contains(id)).collect();
    let order = |id: &str| offer.units.iter().position(|u| u.uuid == device(id)).unwrap_or(usize::MAX);
    left.sort_by_key(|id| (order(id), id.len(), (*id).clone()));
    while chosen.len() < size {
        let count = |id: &String| used.get(device(id)).copied().unwrap_or(0);
        let next = match policy {
            SharedPolicy::Distributed => left.iter().enumerate().min_by_key(|(_, id)| count(id)),
            SharedPolicy::Packed => left.iter().enumerate().rev().max_by_key(|(_, id)| count(id)),
        };
        let Some(at) = next.map(|(at, _)| at) else { break };
        let id = left.remove(at).clone();
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

    /// Pairs 0-1 and 2-3 by NVLink, the rest across sockets.
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

    fn ids(of: &[usize]) -> Vec<String> {
        of.iter().map(|i| format!("GPU-{i}")).collect()
    }

    #[test]
    fn two_gpus_are_taken_where_they_are_linked() {
        let got = choose(&offer(4, None), &pairs(), SharedPolicy::Distributed, &ids(&[1, 2, 3]), &[], 2);
        assert_eq!(got, ids(&[2, 3]));
        let got = choose(&offer(4, None), &pairs(), SharedPolicy::Distributed, &ids(&[0, 1, 2, 3]), &ids(&[1]), 2);
        assert_eq!(got, ids(&[1, 0]));
    }

    #[test]
    fn behind_nvswitches_the_bus_decides() {
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
    fn one_gpu_is_taken_from_a_broken_pair() {
        let got = choose(&offer(4, None), &pairs(), SharedPolicy::Distributed, &ids(&[0, 2, 3]), &[], 1);
        assert_eq!(got, ids(&[0]), "2 and 3 stay together for who needs two");
    }

    #[test]
    fn replicas_are_spread_or_packed() {
        let available: Vec<String> = ["GPU-0::1", "GPU-1::0", "GPU-1::1"].map(String::from).to_vec();
        let take = |policy| choose(&offer(2, Some(2)), &pairs(), policy, &available, &[], 1);
        assert_eq!(take(SharedPolicy::Distributed), ["GPU-1::0"]);
        assert_eq!(take(SharedPolicy::Packed), ["GPU-0::1"]);
    }

    #[test]
    fn no_more_is_chosen_than_there_is() {
        assert_eq!(choose(&offer(4, None), &pairs(), SharedPolicy::Packed, &ids(&[3]), &[], 2), ids(&[3]));
        assert_eq!(binomial(16, 8), 12870);
    }
}
