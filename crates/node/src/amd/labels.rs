//! The labels that describe a node's GPUs of AMD.
//!
//! Source of names and values: ROCm/k8s-device-plugin, `k8s-node-labeller`, README. Each property is a label `amd.com/gpu.PROPERTY` with the
//! value that all devices have, or one label `amd.com/gpu.PROPERTY.VALUE` with the number of devices for each of several values. The older
//! `beta.amd.com` always has the numbers. The labeller's firmware versions are left out.

use std::collections::BTreeMap;

use slipway_gpu::amd::devices::family;

use super::{Machine, Unit};

/// Maximum length of a label's value, and of the name in its key, in bytes.
const MAX_LENGTH: usize = 63;

/// Converts text to a valid label value as the labeller does: spaces become underscores, parentheses are removed. Other characters that
/// Kubernetes would refuse are removed too, and the result is cut to 63 characters.
fn value(text: &str) -> String {
    let text = text.trim().replace(' ', "_");
    let valid = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    cut(&text.chars().filter(valid).collect::<String>())
}

/// Cuts a text to the maximum length, and trims it to letters and digits at both ends.
fn cut(text: &str) -> String {
    let text: String = text.chars().take(MAX_LENGTH).collect();
    text.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

/// Adds the labels of a property with one value per device.
fn count(labels: &mut BTreeMap<String, String>, property: &str, values: impl Iterator<Item = String>) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for value in values.map(|text| value(&text)).filter(|value| !value.is_empty()) {
        *counts.entry(value).or_default() += 1;
    }
    let same = counts.len() == 1;
    for (value, count) in counts {
        let numbered = cut(&format!("gpu.{property}.{value}"));
        labels.insert(format!("beta.amd.com/{numbered}"), count.to_string());
        if same {
            labels.insert(format!("beta.amd.com/gpu.{property}"), value.clone());
            labels.insert(format!("amd.com/gpu.{property}"), value);
        } else {
            labels.insert(format!("amd.com/{numbered}"), count.to_string());
        }
    }
}

/// All labels of a node.
pub fn labels(machine: &Machine) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let units = &machine.units;
    let compute = || units.iter().filter_map(|unit| unit.device.compute.as_ref());
    let product = |unit: &Unit| if unit.device.product.is_empty() { &unit.name } else { &unit.device.product }.clone();
    count(&mut labels, "device-id", units.iter().map(|unit| unit.device.model.clone()));
    count(&mut labels, "product-name", units.iter().map(product));
    count(&mut labels, "family", compute().filter_map(|c| Some(family(c.version)?.to_owned())));
    let gigabytes = |bytes: u64| ((bytes >> 20) as f64 / 1024.0).round();
    count(&mut labels, "vram", compute().map(|c| format!("{}G", gigabytes(c.memory))));
    count(&mut labels, "simd-count", compute().map(|c| c.simds.to_string()));
    let units_of = |simds: u32, per_unit: u32| simds.checked_div(per_unit).map(|n| n.to_string());
    count(&mut labels, "cu-count", compute().filter_map(|c| units_of(c.simds, c.simds_per_unit)));
    let driver = &machine.driver;
    let mut put = |property: &str, text: String| labels.insert(format!("amd.com/gpu.{property}"), text);
    put("driver-version", value(&driver.version));
    put("driver-src-version", value(&driver.source_version));
    put("compute-partitioning-supported", driver.partitions.0.to_string());
    put("memory-partitioning-supported", driver.partitions.1.to_string());
    let mut partitions: Vec<String> =
        units.iter().filter_map(|unit| Some(unit.device.partition.as_ref()?.to_string())).collect();
    partitions.dedup();
    if let [all] = partitions.as_slice() {
        put("compute-memory-partition", all.clone());
    }
    labels
}

#[cfg(test)]
mod tests {
    use slipway_gpu::amd::devices::{Driver, Link};

    use super::*;
    use crate::amd::samples::machine;

    #[test]
    fn labels_are_those_of_the_labeller() {
        let driver =
            Driver { loaded: true, version: "6.12.12".into(), source_version: "ABC".into(), partitions: (true, true) };
        let expected = [
            ("amd.com/gpu.compute-memory-partition", "cpx_nps4"),
            ("amd.com/gpu.compute-partitioning-supported", "true"),
            ("amd.com/gpu.cu-count", "38"),
            ("amd.com/gpu.device-id", "74a1"),
            ("amd.com/gpu.driver-src-version", "ABC"),
            ("amd.com/gpu.driver-version", "6.12.12"),
            ("amd.com/gpu.family", "AI"),
            ("amd.com/gpu.memory-partitioning-supported", "true"),
            ("amd.com/gpu.product-name", "AMD_Instinct_MI300X_OAM"),
            ("amd.com/gpu.simd-count", "152"),
            ("amd.com/gpu.vram", "24G"),
            ("beta.amd.com/gpu.cu-count", "38"),
            ("beta.amd.com/gpu.cu-count.38", "16"),
            ("beta.amd.com/gpu.device-id", "74a1"),
            ("beta.amd.com/gpu.device-id.74a1", "16"),
            ("beta.amd.com/gpu.family", "AI"),
            ("beta.amd.com/gpu.family.AI", "16"),
            ("beta.amd.com/gpu.product-name", "AMD_Instinct_MI300X_OAM"),
            ("beta.amd.com/gpu.product-name.AMD_Instinct_MI300X_OAM", "16"),
            ("beta.amd.com/gpu.simd-count", "152"),
            ("beta.amd.com/gpu.simd-count.152", "16"),
            ("beta.amd.com/gpu.vram", "24G"),
            ("beta.amd.com/gpu.vram.24G", "16"),
        ];
        let found = labels(&Machine { driver, ..machine(&["cpx_nps4", "cpx_nps4"], Link::Xgmi) });
        let found: Vec<_> = found.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn different_values_are_counted() {
        let found = labels(&machine(&["spx_nps1", "cpx_nps1"], Link::Xgmi));
        assert_eq!((found["amd.com/gpu.vram.192G"].as_str(), found["amd.com/gpu.vram.24G"].as_str()), ("1", "8"));
        assert_eq!(found["beta.amd.com/gpu.vram.24G"], "8");
        assert!(!found.contains_key("amd.com/gpu.vram") && !found.contains_key("beta.amd.com/gpu.vram"));
        assert!(!found.contains_key("amd.com/gpu.compute-memory-partition"));
    }

    #[test]
    fn values_are_valid_for_kubernetes() {
        assert_eq!(value("Radeon RX 7900 XTX (48GB)/\u{e9}"), "Radeon_RX_7900_XTX_48GB");
        let mut machine = machine(&[""], Link::Pcie);
        machine.units[0].device.product = "x-".repeat(60);
        for (key, value) in labels(&machine) {
            let name = key.split_once('/').unwrap().1;
            assert!(name.len() <= 63 && value.len() <= 63 && !name.ends_with('-') && !value.ends_with('-'), "{key}");
        }
    }
}
