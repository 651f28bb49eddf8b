//! Prometheus metrics of a node's GPUs, labelled with the pods that hold them.
//!
//! Names, labels and units are those of NVIDIA's DCGM exporter (its `default-counters.csv` and README), so its dashboards work. NVML does
//! not provide DCGM's profiling metrics (`DCGM_FI_PROF_*`). Metrics specific to slipway begin with `slipway_`.
//!
//! This module writes the text format itself, because `prometheus-client` writes OpenMetrics, where every counter name must end with
//! `_total` (OpenMetrics 1.0, section "Counter"), which would rename DCGM exporter's counters.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slipway_gpu::inventory::{Gpu, Inventory};
use slipway_gpu::usage::{Meter, Usage};
use tokio::sync::watch;

use crate::driver::{Driver, Machine, State};
use crate::model::{Held, Holder};

/// The most recent readings.
#[derive(Debug, Default)]
pub struct Readings {
    /// State of all GPUs; `None` if the driver is missing or hangs.
    pub inventory: Option<Inventory>,
    /// Utilisation of video encoder and decoder in percent, keyed by GPU index.
    pub video: BTreeMap<u32, (Option<u32>, Option<u32>)>,
}

/// Maximum age of published readings. Older ones are removed, because they would hide that the driver hangs.
const MAX_AGE: Duration = Duration::from_secs(30);
/// Interval between two readings.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

/// Periodically reads the GPUs, and accumulates the usage of their holders. Runs forever.
pub async fn sample(driver: Arc<Driver>, readings: watch::Sender<Arc<Readings>>, held: watch::Sender<Held>) {
    let mut meter = Meter::default();
    let mut last = Instant::now();
    loop {
        let reading = driver.with(|nvml| {
            let inventory = Inventory::collect(nvml)?;
            let mut video = BTreeMap::new();
            for gpu in &inventory.gpus {
                if let Ok(device) = nvml.device(gpu.index) {
                    video.insert(gpu.index, (device.encoder_utilization().ok(), device.decoder_utilization().ok()));
                }
            }
            Ok(Readings { inventory: Some(inventory), video })
        });
        let on_timeout = || {
            readings.send_replace(Arc::default());
        };
        let now = with_timeout_callback(reading, MAX_AGE, on_timeout).await.unwrap_or_default();
        let seconds = last.elapsed().as_secs_f64();
        last = Instant::now();
        if let Some(inventory) = &now.inventory {
            let any_holders = !held.borrow().is_empty();
            if any_holders {
                held.send_modify(|held| accumulate(held, inventory, &meter, seconds));
            }
            meter.record(inventory);
        }
        // Poll faster while the driver is missing, so that metrics appear soon after it is loaded.
        let interval = if now.inventory.is_some() { SAMPLE_INTERVAL } else { Duration::from_millis(500) };
        readings.send_replace(Arc::new(now));
        tokio::time::sleep(interval).await;
    }
}

/// Awaits a reading without cancelling it, because a second reading would hang as well. Calls `on_timeout` once if it takes longer
/// than `timeout`.
async fn with_timeout_callback<T>(reading: impl Future<Output = T>, timeout: Duration, on_timeout: impl FnOnce()) -> T {
    let mut reading = std::pin::pin!(reading);
    match tokio::time::timeout(timeout, &mut reading).await {
        Ok(read) => read,
        Err(_) => {
            tracing::warn!("the driver does not respond; GPU metrics are suspended until it does");
            on_timeout();
            reading.await
        }
    }
}

/// Adds the usage since the last reading to every holder.
fn accumulate(held: &mut Held, inventory: &Inventory, meter: &Meter, seconds: f64) {
    let mut holders: BTreeMap<String, u32> = BTreeMap::new();
    for holder in held.keys() {
        *holders.entry(holder.device.clone()).or_insert(0) += 1;
    }
    for (holder, used) in held.iter_mut() {
        if let Some(usage) = meter.usage(inventory, &holder.device, holders[&holder.device], seconds) {
            *used += usage;
        }
    }
}

/// Escapes a label value.
pub(crate) fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The labels of one GPU or MIG device, and of one of its holders, if any.
struct Row<'a> {
    gpu: &'a Gpu,
    labels: String,
    mig: bool,
    holder: Option<(&'a Holder, &'a Usage)>,
}

/// One row per holder of a device, or one row for a device without holders.
fn rows<'a>(inventory: &'a Inventory, held: &'a Held, host: &str) -> Vec<Row<'a>> {
    let mut rows = Vec::new();
    for gpu in inventory.gpus.iter().filter(|g| !g.uuid.is_empty()) {
        let device = gpu.minor.map_or_else(|| gpu.index.to_string(), |m| m.to_string());
        let base = format!(
            "gpu=\"{}\",UUID=\"{}\",pci_bus_id=\"{}\",device=\"nvidia{device}\",modelName=\"{}\"",
            gpu.index,
            gpu.uuid,
            gpu.bus_id.to_ascii_uppercase(),
            escape(&gpu.name)
        );
        let rest = format!(",Hostname=\"{}\",DCGM_FI_DRIVER_VERSION=\"{}\"", escape(host), escape(&inventory.driver));
        let slices = gpu.mig.as_ref().filter(|m| m.enabled).map(|m| m.devices.as_slice()).unwrap_or_default();
        let mut parts: Vec<(String, &str, bool)> = slices
            .iter()
            .map(|d| {
                // Compute instances of one GPU instance would otherwise have the same labels, which Prometheus rejects.
                let part = if d.is_part() { format!(",GPU_CI_ID=\"{}\"", d.compute_instance) } else { String::new() };
                let instance = format!("GPU_I_PROFILE=\"{}\",GPU_I_ID=\"{}\"{part}", d.profile, d.gpu_instance);
                (format!("{base},{instance}{rest}"), d.uuid.as_str(), true)
            })
            .collect();
        if parts.is_empty() {
            parts.push((base + &rest, &gpu.uuid, false));
        }
        for (labels, uuid, mig) in parts {
            let holders: Vec<(&Holder, &Usage)> = held.iter().filter(|(h, _)| h.device == uuid).collect();
            if holders.is_empty() {
                rows.push(Row { gpu, labels: labels.clone(), mig, holder: None });
            }
            for (holder, used) in holders {
                // DCGM exporter labels the replica of a shared GPU as `vgpu`.
                let replica = holder.replica.map_or(String::new(), |n| format!(",vgpu=\"{n}\""));
                let labels = format!(
                    "{labels},container=\"{}\",namespace=\"{}\",pod=\"{}\"{replica}",
                    escape(&holder.container),
                    escape(&holder.namespace),
                    escape(&holder.pod)
                );
                rows.push(Row { gpu, labels, mig, holder: Some((holder, used)) });
            }
        }
    }
    rows
}

/// All metrics in the text format of Prometheus, version 0.0.4.
pub fn render(state: &State, readings: &Readings, held: &Held, host: &str) -> String {
    let mut out = String::with_capacity(16 << 10);
    let machine: Option<&Machine> = state.machine();
    let up = f64::from(u8::from(machine.is_some()));
    family(
        &mut out,
        "slipway_gpu_driver_up",
        "gauge",
        "1 if the NVIDIA driver responds, otherwise 0.",
        [(String::new(), up)],
    );
    let Some(inventory) = &readings.inventory else { return out };
    let rows = rows(inventory, held, host);
    let mib = |bytes: u64| (bytes >> 20) as f64;
    // Name, type, help text, and value.
    type Read<'r> = &'r dyn Fn(&Gpu) -> Option<f64>;
    let video = |gpu: &Gpu| readings.video.get(&gpu.index).copied().unwrap_or_default();
    let last_xid = |gpu: &Gpu| machine.map(|m| m.faults.last_xid(&gpu.uuid) as f64);
    let families: [(&str, &str, &str, Read<'_>); 19] = [
        ("DCGM_FI_DEV_SM_CLOCK", "gauge", "Clock of the multiprocessors in MHz.", &|g| g.clock_sm_mhz.map(f64::from)),
        ("DCGM_FI_DEV_MEM_CLOCK", "gauge", "Clock of the memory in MHz.", &|g| g.clock_memory_mhz.map(f64::from)),
        ("DCGM_FI_DEV_GPU_TEMP", "gauge", "Temperature in degrees Celsius.", &|g| g.temperature_celsius.map(f64::from)),
        ("DCGM_FI_DEV_POWER_USAGE", "gauge", "Power drawn in watts.", &|g| g.power_watts),
        (
            "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
            "counter",
            "Energy since the driver was loaded in millijoules.",
            &|g| g.energy_joules.map(|j| (j * 1000.0).round()),
        ),
        ("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "counter", "Retransmitted PCIe packets.", &|g| {
            g.pcie.as_ref()?.replays.map(f64::from)
        }),
        ("DCGM_FI_DEV_GPU_UTIL", "gauge", "Share of time in which a kernel ran in percent.", &|g| {
            g.utilization_percent.map(f64::from)
        }),
        ("DCGM_FI_DEV_MEM_COPY_UTIL", "gauge", "Share of time in which memory was read or written in percent.", &|g| {
            g.memory_utilization_percent.map(f64::from)
        }),
        ("DCGM_FI_DEV_ENC_UTIL", "gauge", "Utilisation of the video encoder in percent.", &|g| {
            video(g).0.map(f64::from)
        }),
        ("DCGM_FI_DEV_DEC_UTIL", "gauge", "Utilisation of the video decoder in percent.", &|g| {
            video(g).1.map(f64::from)
        }),
        ("DCGM_FI_DEV_XID_ERRORS", "gauge", "The last XID, 0 for none.", &last_xid),
        ("DCGM_FI_DEV_FB_FREE", "gauge", "Free memory in MiB.", &|g| {
            Some(mib(g.memory_total?.saturating_sub(g.memory_used?)))
        }),
        ("DCGM_FI_DEV_FB_USED", "gauge", "Used memory in MiB.", &|g| g.memory_used.map(mib)),
        ("DCGM_FI_DEV_FB_TOTAL", "gauge", "Total memory in MiB.", &|g| g.memory_total.map(mib)),
        (
            "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS",
            "counter",
            "Memory rows remapped for uncorrectable errors.",
            &|g| g.ecc.as_ref().map(|e| f64::from(e.rows_remapped_uncorrected)),
        ),
        ("DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", "counter", "Memory rows remapped for correctable errors.", &|g| {
            g.ecc.as_ref().map(|e| f64::from(e.rows_remapped - e.rows_remapped_uncorrected))
        }),
        ("DCGM_FI_DEV_ROW_REMAP_FAILURE", "gauge", "1 if a memory row could not be remapped.", &|g| {
            g.ecc.as_ref().map(|e| f64::from(u8::from(e.remapping_failed)))
        }),
        ("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", "counter", "Uncorrected memory errors since the driver was loaded.", &|g| {
            g.ecc.as_ref().map(|e| e.uncorrected as f64)
        }),
        ("DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", "counter", "Corrected memory errors since the driver was loaded.", &|g| {
            g.ecc.as_ref().map(|e| e.corrected as f64)
        }),
    ];
    for (name, kind, help, read) in families {
        let samples = rows.iter().filter_map(|r| Some((r.labels.clone(), read(r.gpu)?)));
        family(&mut out, name, kind, help, samples);
    }
    let healthy = rows.iter().filter_map(|r| {
        let uuid = r.holder.map_or(r.gpu.uuid.as_str(), |(h, _)| h.device.as_str());
        Some((r.labels.clone(), f64::from(u8::from(machine?.fault(uuid, Some(&r.gpu.uuid)).is_none()))))
    });
    family(&mut out, "slipway_gpu_healthy", "gauge", "1 if the device is healthy and may be allocated.", healthy);
    // An upper bound, because a running kernel may be waiting for memory.
    let share = rows.iter().filter(|r| !r.mig).filter_map(|r| {
        let clock = f64::from(r.gpu.clock_sm_mhz?) / f64::from(r.gpu.clock_sm_max_mhz.filter(|m| *m > 0)?);
        Some((r.labels.clone(), clock * f64::from(r.gpu.utilization_percent?) / 100.0))
    });
    family(
        &mut out,
        "slipway_gpu_peak_share",
        "gauge",
        "Upper bound on the achieved share of the card's peak: utilisation times relative clock.",
        share,
    );
    let per_watt = rows.iter().filter(|r| !r.mig).filter_map(|r| {
        let watts = r.gpu.power_watts? / r.gpu.power_limit_watts.filter(|w| *w > 0.0)?;
        let clock = f64::from(r.gpu.clock_sm_mhz?) / f64::from(r.gpu.clock_sm_max_mhz.filter(|m| *m > 0)?);
        (watts > 0.0)
            .then(|| (r.labels.clone(), clock * f64::from(r.gpu.utilization_percent.unwrap_or(0)) / 100.0 / watts))
    });
    family(
        &mut out,
        "slipway_gpu_efficiency",
        "gauge",
        "Share of peak divided by share of the power limit: 1 if both are fully used.",
        per_watt,
    );
    type ReadUsage = fn(&Usage) -> f64;
    let usages: [(&str, &str, ReadUsage); 3] = [
        (
            "slipway_gpu_pod_energy_joules_total",
            "Energy of the device while the container held it, split evenly among holders.",
            |u| u.joules,
        ),
        ("slipway_gpu_pod_busy_seconds_total", "Time in which the GPU was busy while the container held it.", |u| {
            u.busy_seconds
        }),
        ("slipway_gpu_pod_idle_seconds_total", "Time in which the GPU was idle while the container held it.", |u| {
            u.idle_seconds
        }),
    ];
    for (name, help, read) in usages {
        let samples = rows.iter().filter_map(|r| Some((r.labels.clone(), read(r.holder?.1))));
        family(&mut out, name, "counter", help, samples);
    }
    out
}

/// Writes a metric family; nothing if it has no samples.
pub(crate) fn family(
    out: &mut String,
    name: &str,
    kind: &str,
    help: &str,
    samples: impl IntoIterator<Item = (String, f64)>,
) {
    let mut samples = samples.into_iter().peekable();
    if samples.peek().is_none() {
        return;
    }
    // Writing to a string cannot fail.
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    for (labels, value) in samples {
        let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
        let _ = writeln!(out, "{name}{labels} {value}");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::samples::{compute_instances, machine};

    #[test]
    fn compute_instances_of_one_gpu_instance_have_different_labels() {
        let machine = machine(vec![compute_instances()]);
        let held = Held::new();
        let rows = rows(&machine.inventory, &held, "n1");
        let labels: std::collections::BTreeSet<&str> = rows.iter().map(|r| r.labels.as_str()).collect();
        assert_eq!((rows.len(), labels.len()), (3, 3), "{labels:?}");
        assert!(rows[1].labels.contains("GPU_I_PROFILE=\"1c.3g.40gb\",GPU_I_ID=\"1\",GPU_CI_ID=\"1\""));
        assert!(!rows[2].labels.contains("GPU_CI_ID"));
    }

    #[tokio::test]
    async fn readings_are_removed_while_driver_hangs() {
        let removed = Cell::new(false);
        let (sender, reading) = tokio::sync::oneshot::channel();
        let mut sender = Some(sender);
        let on_timeout = || {
            removed.set(true);
            sender.take().unwrap().send(7).unwrap();
        };
        // The reading completes only after the callback has removed the old readings.
        assert_eq!(with_timeout_callback(reading, Duration::from_millis(10), on_timeout).await, Ok(7));
        assert!(removed.get());
        let no_timeout = || unreachable!("the reading is ready");
        let immediate = with_timeout_callback(std::future::ready(8), Duration::from_secs(60), no_timeout).await;
        assert_eq!(immediate, 8);
    }
}
