//! Adds GPUs of AMD to the agent's report about its node, in which they have the same form as those of NVIDIA.

use serde_json::{Value, json};
use slipway_gpu::inventory::Gpu;

use super::{Naming, Readings, State, Unit, labels, offers};

/// The device as a GPU of the inventory, identified by the name that the kubelet knows.
fn gpu(unit: &Unit, readings: &Readings) -> Gpu {
    let id = &unit.device.id;
    let read = readings.iter().find(|(read, _)| read == id).map(|(_, gpu)| gpu.clone());
    let unread = || Gpu {
        name: unit.name.clone(),
        bus_id: unit.device.address.clone(),
        minor: Some(unit.device.render),
        memory_total: unit.device.compute.as_ref().map(|compute| compute.memory),
        ..Gpu::default()
    };
    Gpu { uuid: id.clone(), ..read.unwrap_or_else(unread) }
}

/// Appends to a list in the report, which is created if it does not exist.
fn append(report: &mut Value, key: &str, items: impl IntoIterator<Item = Value>) {
    if !report[key].is_array() {
        report[key] = json!([]);
    }
    if let Some(list) = report[key].as_array_mut() {
        list.extend(items);
    }
}

/// Adds resources, GPUs and labels to the report, and under `amd` what concerns the vendor only. If the node `needs_nvidia`, a missing driver
/// of NVIDIA stays a problem beside GPUs of AMD.
pub fn add(report: &mut Value, state: &State, readings: &Readings, naming: Naming, needs_nvidia: bool) {
    let machine = match state {
        State::Off => return,
        State::Missing(why) => {
            report["amd"] = json!({"missing": why});
            return;
        }
        State::Available(machine) => machine,
    };
    report["amd"] = json!({"driver": machine.driver, "library": machine.library});
    if report["driver"].is_null() {
        report["driver"] = json!(format!("amdgpu {}", machine.driver.version).trim_end());
        if !needs_nvidia {
            report["missing"] = Value::Null;
        }
    }
    report["simulated"] = json!(report["simulated"] == true || machine.simulated);
    append(report, "gpus", machine.units.iter().map(|unit| json!(gpu(unit, readings))));
    match offers(machine, naming) {
        Ok(offers) => append(
            report,
            "offers",
            offers.iter().map(|offer| {
                let device = |unit: &Unit| {
                    let id = &unit.device.id;
                    json!({"uuid": id, "index": id, "gpu": id, "fault": unit.fault})
                };
                let devices: Vec<Value> = offer.units.iter().map(device).collect();
                json!({"resource": offer.resource, "replicas": null, "sharing": null, "devices": devices})
            }),
        ),
        Err(why) => {
            append(report, "offers", []);
            report["problem"] =
                json!([report["problem"].as_str(), Some(&why)].into_iter().flatten().collect::<Vec<_>>().join("; "));
        }
    }
    if !report["labels"].is_object() {
        report["labels"] = json!({});
    }
    for (key, value) in labels(machine) {
        report["labels"][key] = json!(value);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use slipway_gpu::amd::devices::Link;

    use super::*;
    use crate::amd::samples::machine;

    #[test]
    fn devices_are_listed_beside_those_of_nvidia() {
        let mut machine = machine(&["spx_nps1", "spx_nps1"], Link::Xgmi);
        machine.units[1].fault = Some("lost".into());
        let state = State::Available(Box::new(machine));
        let nvidia = json!({"driver": "580", "simulated": false, "gpus": [{"uuid": "GPU-0"}], "offers": [{"resource": "nvidia.com/gpu"}],
            "labels": {"nvidia.com/gpu.count": "1"}, "problem": null});
        let gpu = Gpu { name: "MI300X".into(), power_watts: Some(700.0), ..Gpu::default() };
        let readings: Readings = Arc::new(vec![("0000:00:00.0".into(), gpu)]);
        let mut report = nvidia;
        add(&mut report, &state, &readings, Naming::Single, true);
        assert_eq!((report["driver"].as_str(), report["gpus"].as_array().unwrap().len()), (Some("580"), 3));
        assert_eq!(
            (&report["gpus"][1]["uuid"], &report["gpus"][1]["power_watts"]),
            (&json!("0000:00:00.0"), &json!(700.0))
        );
        assert_eq!(report["gpus"][2]["memory_total"], json!(192_u64 << 30), "without AMD SMI, from the compute driver");
        assert_eq!(report["offers"][1]["devices"][1]["fault"], "lost");
        assert_eq!(report["labels"]["nvidia.com/gpu.count"], "1");
        assert_eq!(report["labels"]["amd.com/gpu.device-id"], "74a1");

        let missing = || json!({"driver": null, "missing": "no NVML", "holders": []});
        let mut alone = missing();
        add(&mut alone, &state, &readings, Naming::Single, false);
        assert!(
            alone["missing"].is_null()
                && alone["driver"] == "amdgpu"
                && alone["offers"][0]["resource"] == "amd.com/gpu"
        );
        let mut broken = missing();
        add(&mut broken, &state, &readings, Naming::Single, true);
        assert_eq!(broken["missing"], "no NVML");
    }

    #[test]
    fn cards_that_cannot_be_offered_are_a_problem() {
        let state = State::Available(Box::new(machine(&["spx_nps1", "cpx_nps1"], Link::Xgmi)));
        let mut report = json!({"driver": null, "missing": "no NVML"});
        add(&mut report, &state, &Readings::default(), Naming::Single, false);
        assert!(report["problem"].as_str().unwrap().starts_with("the cards are divided differently"), "{report}");
        assert_eq!(report["offers"], json!([]));
    }
}
