//! Chooses the devices that the kubelet should prefer among the available ones, by the rules of AMD's device plugin ("best effort"): as many
//! partitions as possible of one card, first of the card with the fewest available ones, so that other cards stay whole; among several
//! cards those with the best connections.
//!
//! Source: ROCm/k8s-device-plugin, docs, "Resource Allocation".

use std::collections::BTreeMap;

use slipway_gpu::amd::devices::{Device, Link};

/// Maximum number of pairs of devices that are compared. A request for 8 of 16 cards has about three million.
const MAX_PAIRS: usize = 4_000_000;

/// The cost of two devices in one container, lower is better. The numbers are those of AMD's device plugin.
fn cost(a: &Device, b: &Device) -> u32 {
    let card = if a.address == b.address { 10 } else { 20 };
    let link = match a.link(b) {
        Link::Xgmi => 10,
        Link::Pcie => 40,
        Link::Other => 50,
    };
    let numa = if a.numa == b.numa { 10 } else { 20 };
    card + link + numa
}

/// Chooses `size` of the `available` identifiers, including all `required` ones; fewer if fewer are available.
pub(super) fn choose(devices: &[&Device], available: &[String], required: &[String], size: usize) -> Vec<String> {
    let named = |ids: &[String]| -> Vec<&Device> { devices.iter().copied().filter(|d| ids.contains(&d.id)).collect() };
    let required = named(required);
    let ids = |set: &[&Device]| set.iter().map(|device| device.id.clone()).collect::<Vec<_>>();
    let mut available = named(available);
    if available.len() <= size {
        return ids(&available);
    }
    available.retain(|device| !required.contains(device));
    let Some(missing) = size.checked_sub(required.len()).filter(|missing| *missing > 0) else { return ids(&required) };
    // The available devices by card: of each card in the order of the compute driver, the card with the fewest first.
    let mut by_card: BTreeMap<&str, Vec<&Device>> = BTreeMap::new();
    for device in available {
        by_card.entry(&device.address).or_default().push(device);
    }
    let mut cards: Vec<Vec<&Device>> = by_card.into_values().collect();
    for card in &mut cards {
        card.sort_by_key(|device| device.compute.as_ref().map(|compute| compute.node));
    }
    cards.sort_by_key(Vec::len);
    let mut search = Search { cards: &cards, required: &required, missing, best: None, compared: 0 };
    search.extend(&mut Vec::new(), 0);
    let mut chosen = ids(&required);
    chosen.extend(search.best.map(|(_, set)| ids(&set)).unwrap_or_default());
    chosen
}

/// The search for the set of devices with the lowest cost.
struct Search<'a> {
    cards: &'a [Vec<&'a Device>],
    required: &'a [&'a Device],
    missing: usize,
    /// Cost and number of cards of the best set, and the set.
    best: Option<((u32, usize), Vec<&'a Device>)>,
    /// Number of pairs so far.
    compared: usize,
}

impl<'a> Search<'a> {
    /// Compares all sets that take the cards of `taken` with all their devices, further ones from `from` on, and a last card.
    fn extend(&mut self, taken: &mut Vec<usize>, from: usize) {
        let count: usize = taken.iter().map(|card| self.cards[*card].len()).sum();
        let rest = self.missing - count;
        for (last, card) in self.cards.iter().enumerate() {
            if card.len() >= rest && !taken.contains(&last) {
                let all = taken.iter().flat_map(|card| self.cards[*card].iter());
                let set: Vec<&Device> = all.chain(&card[..rest]).copied().collect();
                self.compare(set, taken.len() + 1);
            }
        }
        for next in from..self.cards.len() {
            // A card that has enough devices is always the last one.
            if self.cards[next].len() < rest && self.compared < MAX_PAIRS {
                taken.push(next);
                self.extend(taken, next + 1);
                taken.pop();
            }
        }
    }

    fn compare(&mut self, set: Vec<&'a Device>, cards: usize) {
        let all: Vec<&Device> = set.iter().chain(self.required).copied().collect();
        self.compared += all.len() * all.len() / 2 + 1;
        let pairs = all.iter().enumerate().flat_map(|(n, a)| all[..n].iter().map(move |b| cost(a, b)));
        let value = (pairs.sum(), cards);
        if self.best.as_ref().is_none_or(|(best, _)| value < *best) {
            self.best = Some((value, set));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amd::samples::machine;

    fn chosen(modes: &[&str], link: Link, without: &[&str], required: &[&str], size: usize) -> Vec<String> {
        let machine = machine(modes, link);
        let devices: Vec<&Device> = machine.units.iter().map(|unit| &unit.device).collect();
        let available: Vec<String> =
            devices.iter().map(|d| d.id.clone()).filter(|id| !without.contains(&id.as_str())).collect();
        let required: Vec<String> = required.iter().map(|id| (*id).to_owned()).collect();
        choose(&devices, &available, &required, size)
    }

    #[test]
    fn cards_of_one_numa_node_are_preferred() {
        let modes = ["spx_nps1"; 8];
        assert_eq!(chosen(&modes, Link::Xgmi, &[], &[], 3), ["0000:00:00.0", "0000:01:00.0", "0000:02:00.0"]);
        let without = ["0000:00:00.0", "0000:01:00.0"];
        // Cards 2 and 3 are at NUMA node 0, and 4 to 7 at node 1.
        let expected = ["0000:04:00.0", "0000:05:00.0", "0000:06:00.0"];
        assert_eq!(chosen(&modes, Link::Pcie, &without, &[], 3), expected);
        assert_eq!(chosen(&modes, Link::Pcie, &without, &["0000:05:00.0"], 2), ["0000:05:00.0", "0000:04:00.0"]);
    }

    #[test]
    fn partitions_of_the_card_with_the_fewest_are_taken_first() {
        let modes = ["cpx_nps4", "cpx_nps4", "cpx_nps4"];
        // Card 1 has seven partitions left: xcp_7 to xcp_13.
        let without = ["0000:01:00.0"];
        assert_eq!(chosen(&modes, Link::Xgmi, &without, &[], 1), ["amdgpu_xcp_7"]);
        assert_eq!(chosen(&modes, Link::Xgmi, &without, &[], 2), ["amdgpu_xcp_7", "amdgpu_xcp_8"]);
        let eight = chosen(&modes, Link::Xgmi, &without, &[], 8);
        assert_eq!((eight.len(), eight[0].as_str()), (8, "0000:00:00.0"));
        let ten = chosen(&modes, Link::Xgmi, &without, &[], 10);
        let of_card_1 = ten.iter().filter(|id| ("amdgpu_xcp_7".."amdgpu_xcp_9:").contains(&id.as_str())).count();
        assert_eq!((ten.len(), of_card_1), (10, 2), "one whole card and two partitions: {ten:?}");
    }

    /// The cases of upstream's own tests on eight MI300X in 64 partitions, of which the last does not exist.
    #[test]
    fn choices_are_those_of_upstream() {
        let machine = machine(&["cpx_nps4"; 8], Link::Xgmi);
        let devices: Vec<&Device> = machine.units[..63].iter().map(|unit| &unit.device).collect();
        let at = |card: usize, part: usize| devices[card * 8 + part].id.clone();
        let parts = |card: usize, from: usize, to: usize| (from..to).map(|part| at(card, part)).collect::<Vec<_>>();
        let firsts: Vec<String> = (2..8).map(|card| at(card, 0)).collect();
        let all: Vec<String> = devices.iter().map(|device| device.id.clone()).collect();
        let without = |ids: &[String]| all.iter().filter(|id| !ids.contains(id)).cloned().collect::<Vec<_>>();
        let used: Vec<String> =
            [(0, 0), (1, 0), (2, 0), (3, 0), (7, 0), (7, 1)].map(|(card, part)| at(card, part)).into();
        let same_numa = vec![at(4, 0), at(5, 0), at(6, 0)];
        for (available, required, size, expected) in [
            (all.clone(), vec![], 1, parts(7, 0, 1)),
            (all.clone(), vec![], 3, parts(7, 0, 3)),
            (all.clone(), vec![], 5, parts(7, 0, 5)),
            (all.clone(), vec![], 7, parts(7, 0, 7)),
            (all.clone(), vec![], 8, parts(0, 0, 8)),
            (firsts.clone(), vec![], 3, same_numa.clone()),
            (firsts, vec![at(4, 0)], 3, same_numa),
            (without(&parts(7, 0, 3)), vec![], 4, parts(7, 3, 7)),
            (without(&used), vec![], 10, [parts(4, 0, 8), parts(7, 2, 4)].concat()),
        ] {
            assert_eq!(choose(&devices, &available, &required, size), expected);
        }
        assert_eq!(choose(&devices, &all, &[], 30).len(), 30);
    }

    #[test]
    fn impossible_requests_get_what_there_is() {
        let modes = ["spx_nps1"; 2];
        assert_eq!(chosen(&modes, Link::Xgmi, &[], &[], 0), Vec::<String>::new());
        assert_eq!(chosen(&modes, Link::Xgmi, &[], &[], 5).len(), 2);
        assert_eq!(chosen(&modes, Link::Xgmi, &["0000:00:00.0"], &["x"], 1), ["0000:01:00.0"]);
        let many = ["spx_nps1"; 40];
        assert_eq!(chosen(&many, Link::Xgmi, &[], &[], 20).len(), 20, "the search is limited");
    }
}
