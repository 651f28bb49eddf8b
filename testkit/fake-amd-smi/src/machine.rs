//! The simulated machine: its fixture, and what a control file changes.
//!
//! The file `SLIPWAY_FAKE_AMD_CONTROL` has one change a line, and is read before every call:
//!
//! ```text
//! errors 3 1            # GPU 3 has one uncorrected memory error
//! lost 2                # card 2 is no longer on the bus
//! partition 0 cpx nps4  # card 0 is divided
//! ```

use serde::Deserialize;

const FIXTURES: [(&str, &str); 6] = [
    ("mi300xx8", include_str!("../fixtures/mi300xx8.yaml")),
    ("mi300xx8-cpx", include_str!("../fixtures/mi300xx8-cpx.yaml")),
    ("mi300xx8-mixed", include_str!("../fixtures/mi300xx8-mixed.yaml")),
    ("mi355xx8", include_str!("../fixtures/mi355xx8.yaml")),
    ("mi210x4", include_str!("../fixtures/mi210x4.yaml")),
    ("rx7900xtxx2", include_str!("../fixtures/rx7900xtxx2.yaml")),
];
/// The names of the built-in fixtures.
pub const NAMES: [&str; 6] = [FIXTURES[0].0, FIXTURES[1].0, FIXTURES[2].0, FIXTURES[3].0, FIXTURES[4].0, FIXTURES[5].0];

/// How the cards are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Link {
    Xgmi,
    Pcie,
}

/// A simulated machine. Lists have one value per card; a shorter list is repeated.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Machine {
    pub(crate) driver: String,
    pub(crate) source_version: String,
    pub(crate) count: u32,
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) product: String,
    pub(crate) device: u64,
    pub(crate) architecture: u64,
    pub(crate) compute_units: u32,
    #[serde(default = "four")]
    pub(crate) simds_per_unit: u32,
    /// Number of compute chiplets, the largest number of partitions.
    #[serde(default = "one")]
    chiplets: u32,
    /// Compute and memory mode; empty if the card cannot be partitioned.
    #[serde(default)]
    partitions: Vec<String>,
    pub(crate) link: Link,
    pub(crate) memory_mib: u64,
    pub(crate) memory_used_mib: Vec<u64>,
    pub(crate) utilization: Vec<u32>,
    pub(crate) power: Vec<u32>,
    pub(crate) power_limit: u64,
    pub(crate) temperature: Vec<i64>,
    pub(crate) temperature_critical: i64,
    pub(crate) temperature_emergency: i64,
}

fn one() -> u32 {
    1
}

fn four() -> u32 {
    4
}

/// A GPU: a card, or a partition of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gpu {
    /// Number of its card.
    pub(crate) card: u32,
    /// Number of the partition, 0 for the first.
    pub(crate) partition: u32,
    /// Number of partitions of its card.
    pub(crate) partitions: u32,
    /// Compute and memory mode of its card, if it can be partitioned.
    pub(crate) modes: Option<(String, String)>,
    /// Uncorrected memory errors.
    pub(crate) errors: u64,
}

impl Machine {
    /// The machine of a fixture.
    pub(crate) fn load(name: &str) -> Option<Self> {
        let (_, text) = FIXTURES.iter().find(|(fixture, _)| *fixture == name)?;
        serde_saphyr::from_str(text).ok()
    }

    /// Bus of a card.
    pub(crate) fn bus(card: u32) -> u32 {
        0x05 + 0x20 * card
    }

    /// All GPUs with the changes of the control file.
    pub(crate) fn gpus(&self) -> Vec<Gpu> {
        let control = std::env::var("SLIPWAY_FAKE_AMD_CONTROL").ok();
        self.changed(&control.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default())
    }

    /// All GPUs with these changes.
    fn changed(&self, control: &str) -> Vec<Gpu> {
        let changes: Vec<Vec<&str>> = control.lines().map(|line| line.split_whitespace().collect()).collect();
        let number = |text: &str| text.parse::<u64>().ok();
        let mut gpus = Vec::new();
        for card in 0..self.count {
            let is_card = |text: &str| number(text) == Some(u64::from(card));
            if changes.iter().any(|c| matches!(c[..], ["lost", lost] if is_card(lost))) {
                continue;
            }
            let fixture = pick(&self.partitions, card).and_then(|modes| modes.split_once('_'));
            let changed = changes.iter().rev().find_map(|c| match c[..] {
                ["partition", of, compute, memory] if is_card(of) => Some((compute, memory)),
                _ => None,
            });
            let modes = fixture.map(|fixture| changed.unwrap_or(fixture));
            let partitions = match modes.map(|(compute, _)| compute) {
                Some("cpx") => self.chiplets,
                Some("qpx") => 4,
                Some("tpx") => 3,
                Some("dpx") => 2,
                _ => 1,
            };
            for partition in 0..partitions {
                let modes = modes.map(|(compute, memory)| (compute.to_owned(), memory.to_owned()));
                gpus.push(Gpu { card, partition, partitions, modes, errors: 0 });
            }
        }
        for change in &changes {
            if let ["errors", gpu, count] = change[..]
                && let Some(gpu) = number(gpu).and_then(|n| gpus.get_mut(usize::try_from(n).ok()?))
            {
                gpu.errors = number(count).unwrap_or(0);
            }
        }
        gpus
    }
}

/// The value of a card.
pub(crate) fn pick<T>(list: &[T], card: u32) -> Option<&T> {
    list.get(card as usize % list.len().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fixture_can_be_loaded() {
        for name in NAMES {
            assert!(Machine::load(name).is_some(), "{name}");
        }
        assert!(Machine::load("mi1").is_none());
    }

    #[test]
    fn control_file_changes_cards_and_gpus() {
        let machine = Machine::load("mi300xx8-mixed").unwrap();
        assert_eq!(machine.changed("").len(), 5 + 3 * 8);
        let changed = machine.changed("lost 7\npartition 0 dpx nps2\nerrors 1 4\nlost x\n\n");
        assert_eq!(changed.len(), 2 + 4 + 2 * 8);
        assert_eq!((changed[1].card, changed[1].partition, changed[1].errors), (0, 1, 4));
        assert_eq!(changed[1].modes, Some(("dpx".into(), "nps2".into())));
        let machine = Machine::load("mi210x4").unwrap();
        assert_eq!(machine.changed("partition 0 cpx nps4").len(), 4, "it cannot be partitioned");
    }
}
