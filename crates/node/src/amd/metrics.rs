//! Prometheus metrics of AMD's GPUs. Names, labels and units are those of AMD's device metrics exporter, as far as AMD SMI's calls for them
//! are made here.

use std::fmt::Write;

use slipway_gpu::inventory::Gpu;

use super::{Readings, State, Unit};
use crate::metrics::{escape, family};
use crate::model::Held;

/// The labels of a device, once for each container that holds it.
fn labels(unit: &Unit, gpu: &Gpu, driver: &str, held: &Held, host: &str) -> Vec<String> {
    let device = &unit.device;
    let mut base = format!(
        "gpu_id=\"{}\",serial_number=\"{}\",card_model=\"{}\",hostname=\"{}\",driver_version=\"{}\",device=\"{}\"",
        gpu.index,
        escape(gpu.serial.as_deref().unwrap_or_default()),
        escape(&unit.name),
        escape(host),
        escape(driver),
        escape(&device.id)
    );
    if let Some(partition) = &device.partition {
        // Writing to a string cannot fail.
        let _ = write!(
            base,
            ",gpu_compute_partition_type=\"{}\",gpu_memory_partition_type=\"{}\"",
            partition.compute, partition.memory
        );
    }
    let holders = held.keys().filter(|holder| holder.device == device.id);
    let rows: Vec<String> = holders
        .map(|holder| {
            format!(
                "{base},container=\"{}\",namespace=\"{}\",pod=\"{}\"",
                escape(&holder.container),
                escape(&holder.namespace),
                escape(&holder.pod)
            )
        })
        .collect();
    if rows.is_empty() { vec![base] } else { rows }
}

/// All metrics in the text format of Prometheus; nothing if the agent does not handle GPUs of AMD.
pub fn render(state: &State, readings: &Readings, held: &Held, host: &str) -> String {
    let mut out = String::new();
    if *state == State::Off {
        return out;
    }
    let machine = state.machine();
    let count = machine.map_or(0, |machine| machine.units.len());
    family(
        &mut out,
        "gpu_nodes_total",
        "gauge",
        "Number of GPUs of AMD in the node.",
        [(format!("hostname=\"{}\"", escape(host)), count as f64)],
    );
    let Some(machine) = machine else { return out };
    let mut rows: Vec<(String, &Unit, &Gpu)> = Vec::new();
    let unread = Gpu::default();
    for unit in &machine.units {
        let reading = readings.iter().find(|(id, _)| *id == unit.device.id);
        let gpu = reading.map_or(&unread, |(_, gpu)| gpu);
        let labels = labels(unit, gpu, &machine.driver.version, held, host);
        rows.extend(labels.into_iter().map(|labels| (labels, unit, gpu)));
    }
    let mib = |bytes: u64| (bytes >> 20) as f64;
    // Name, help text, and value.
    type Read<'r> = &'r dyn Fn(&Unit, &Gpu) -> Option<f64>;
    let families: [(&str, &str, Read<'_>); 11] = [
        ("gpu_health", "1 if the GPU is healthy and may be allocated.", &|unit, _| {
            Some(f64::from(u8::from(unit.fault.is_none())))
        }),
        ("gpu_package_power", "Power of the package in watts.", &|_, gpu| gpu.power_watts),
        ("gpu_power_usage", "Power of the GPU in watts.", &|_, gpu| gpu.power_watts),
        ("gpu_junction_temperature", "Temperature of the hottest spot in degrees Celsius.", &|_, gpu| {
            gpu.temperature_celsius.map(f64::from)
        }),
        ("gpu_gfx_activity", "Share of time in which the graphics engine was busy in percent.", &|_, gpu| {
            gpu.utilization_percent.map(f64::from)
        }),
        ("gpu_umc_activity", "Share of time in which the memory controller was busy in percent.", &|_, gpu| {
            gpu.memory_utilization_percent.map(f64::from)
        }),
        ("gpu_total_vram", "Total memory in MiB.", &|_, gpu| gpu.memory_total.map(mib)),
        ("gpu_used_vram", "Used memory in MiB.", &|_, gpu| gpu.memory_used.map(mib)),
        ("gpu_free_vram", "Free memory in MiB.", &|_, gpu| {
            Some(mib(gpu.memory_total?.saturating_sub(gpu.memory_used?)))
        }),
        ("gpu_ecc_correct_total", "Corrected memory errors since the driver was loaded.", &|_, gpu| {
            gpu.ecc.as_ref().map(|ecc| ecc.corrected as f64)
        }),
        ("gpu_ecc_uncorrect_total", "Uncorrected memory errors since the driver was loaded.", &|_, gpu| {
            gpu.ecc.as_ref().map(|ecc| ecc.uncorrected as f64)
        }),
    ];
    for (name, help, read) in families {
        let samples = rows.iter().filter_map(|(labels, unit, gpu)| Some((labels.clone(), read(unit, gpu)?)));
        family(&mut out, name, "gauge", help, samples);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use slipway_gpu::amd::devices::Link;
    use slipway_gpu::usage::Usage;

    use super::*;
    use crate::amd::samples::machine;
    use crate::model::Holder;

    #[test]
    fn holders_are_in_the_labels_and_unread_values_are_left_out() {
        let mut machine = machine(&["cpx_nps4"], Link::Xgmi);
        machine.units[1].fault = Some("2 uncorrected memory errors".into());
        let state = State::Available(Box::new(machine));
        let gpu = Gpu { index: 0, power_watts: Some(702.0), memory_total: Some(24 << 30), ..Gpu::default() };
        let readings: Readings = Arc::new(vec![("0000:00:00.0".into(), gpu)]);
        let holder = Holder {
            namespace: "team".into(),
            pod: "train-\"1\"".into(),
            container: "main".into(),
            resource: "amd.com/gpu".into(),
            device: "0000:00:00.0".into(),
            replica: None,
        };
        let text = render(&state, &readings, &Held::from([(holder, Usage::default())]), "n1");
        let lines = |name: &str| text.lines().filter(|l| l.starts_with(&format!("{name}{{"))).collect::<Vec<_>>();
        assert_eq!(lines("gpu_nodes_total"), ["gpu_nodes_total{hostname=\"n1\"} 8"]);
        let [power] = lines("gpu_package_power")[..] else { panic!("{text}") };
        assert!(power.ends_with(",container=\"main\",namespace=\"team\",pod=\"train-\\\"1\\\"\"} 702"), "{power}");
        assert!(power.contains("gpu_compute_partition_type=\"cpx\""), "{power}");
        assert_eq!(lines("gpu_health").iter().filter(|line| line.ends_with(" 0")).count(), 1);
        assert!(lines("gpu_gfx_activity").is_empty());
        assert_eq!(render(&State::Off, &readings, &Held::new(), "n1"), "");
    }
}
