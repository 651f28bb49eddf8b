//! Metrics of a node's GPUs, with the names of the pods that hold them.
//!
//! Names, labels and units are those of NVIDIA's DCGM exporter (its `default-counters.csv` and README), so dashboards made for it
//! work. What DCGM measures with profiling counters (`DCGM_FI_PROF_*`) NVML does not offer, and is left out. Ours begin with
//! `slipway_`.
//!
//! The text is written here, since in OpenMetrics, which `prometheus-client` writes, the name of a counter ends with `_total`
//! (OpenMetrics 1.0, section "Counter"): DCGM exporter's counters would have other names.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slipway_gpu::inventory::{Gpu, Inventory};
use slipway_gpu::usage::{Meter, Use};
use tokio::sync::watch;

use crate::driver::{Driver, Machine, State};
use crate::model::{Held, Holder};

/// The newest readings.
#[derive(Debug, Default)]
pub struct Readings {
    /// What all GPUs tell; `None` without a driver.
    pub inventory: Option<Inventory>,
    /// Per cent of the encoders' and decoders' time, by index.
    pub video: BTreeMap<u32, (Option<u32>, Option<u32>)>,
}

/// Readings that are older than this are told no more: they would look as if all were well.
const STALE: Duration = Duration::from_secs(30);
/// Between two readings.
pub const EVERY: Duration = Duration::from_secs(5);

/// Reads the GPUs again and again, and adds up what their holders use.
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
        let stale = || {
            readings.send_replace(Arc::default());
        };
        let now = watched(reading, STALE, stale).await.unwrap_or_default();
        let seconds = last.elapsed().as_secs_f64();
        last = Instant::now();
        if let Some(inventory) = &now.inventory {
            let nobody = held.borrow().is_empty();
            if !nobody {
                held.send_modify(|held| add_up(held, inventory, &meter, seconds));
            }
            meter.remember(inventory);
        }
        // A driver that has only just come is not kept waiting.
        let pause = if now.inventory.is_some() { EVERY } else { Duration::from_millis(500) };
        readings.send_replace(Arc::new(now));
        tokio::time::sleep(pause).await;
    }
}

/// Waits for a reading however long it takes: another one would hang as well. Calls `stale` when it takes longer than `limit`.
async fn watched<T>(reading: impl Future<Output = T>, limit: Duration, stale: impl FnOnce()) -> T {
    let mut reading = std::pin::pin!(reading);
    match tokio::time::timeout(limit, &mut reading).await {
        Ok(read) => read,
        Err(_) => {
            tracing::warn!("the driver does not answer; no readings of GPUs are told until it does");
            stale();
            reading.await
        }
    }
}

/// Adds what every holder used since the last reading.
fn add_up(held: &mut Held, inventory: &Inventory, meter: &Meter, seconds: f64) {
    let mut holders: BTreeMap<String, u32> = BTreeMap::new();
    for holder in held.keys() {
        *holders.entry(holder.device.clone()).or_insert(0) += 1;
    }
    for (holder, used) in held.iter_mut() {
        if let Some(more) = meter.used(inventory, &holder.device, holders[&holder.device], seconds) {
            *used += more;
        }
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// One GPU or MIG device, and one who holds it, if anybody does.
struct Row<'a> {
    gpu: &'a Gpu,
    labels: String,
    mig: bool,
    holder: Option<(&'a Holder, &'a Use)>,
}

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
                (
                    format!("{base},GPU_I_PROFILE=\"{}\",GPU_I_ID=\"{}\"{rest}", d.profile, d.gpu_instance),
                    d.uuid.as_str(),
                    true,
                )
            })
            .collect();
        if parts.is_empty() {
            parts.push((base + &rest, &gpu.uuid, false));
        }
        for (labels, uuid, mig) in parts {
            let holders: Vec<(&Holder, &Use)> = held.iter().filter(|(h, _)| h.device == uuid).collect();
            if holders.is_empty() {
                rows.push(Row { gpu, labels: labels.clone(), mig, holder: None });
            }
            for (holder, used) in holders {
                // DCGM exporter's label for a replica of a shared GPU.
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
    family(&mut out, "slipway_gpu_driver_up", "gauge", "1 when the driver answers.", [(String::new(), up)]);
    let Some(inventory) = &readings.inventory else { return out };
    let rows = rows(inventory, held, host);
    let mib = |bytes: u64| (bytes >> 20) as f64;
    // Name, kind, help, whether MIG devices have it, and its value.
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
        ("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "counter", "PCIe packets sent again.", &|g| {
            g.pcie.as_ref()?.replays.map(f64::from)
        }),
        ("DCGM_FI_DEV_GPU_UTIL", "gauge", "Share of time in which a kernel ran, in per cent.", &|g| {
            g.utilization_percent.map(f64::from)
        }),
        (
            "DCGM_FI_DEV_MEM_COPY_UTIL",
            "gauge",
            "Share of time in which memory was read or written, in per cent.",
            &|g| g.memory_utilization_percent.map(f64::from),
        ),
        ("DCGM_FI_DEV_ENC_UTIL", "gauge", "Use of the video encoder in per cent.", &|g| video(g).0.map(f64::from)),
        ("DCGM_FI_DEV_DEC_UTIL", "gauge", "Use of the video decoder in per cent.", &|g| video(g).1.map(f64::from)),
        ("DCGM_FI_DEV_XID_ERRORS", "gauge", "The last XID, 0 for none.", &last_xid),
        ("DCGM_FI_DEV_FB_FREE", "gauge", "Free memory in MiB.", &|g| {
            Some(mib(g.memory_total?.saturating_sub(g.memory_used?)))
        }),
        ("DCGM_FI_DEV_FB_USED", "gauge", "Used memory in MiB.", &|g| g.memory_used.map(mib)),
        ("DCGM_FI_DEV_FB_TOTAL", "gauge", "All memory in MiB.", &|g| g.memory_total.map(mib)),
        (
            "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS",
            "counter",
            "Memory rows remapped for uncorrectable errors.",
            &|g| g.ecc.as_ref().map(|e| f64::from(e.rows_remapped_uncorrected)),
        ),
        ("DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", "counter", "Memory rows remapped for correctable errors.", &|g| {
            g.ecc.as_ref().map(|e| f64::from(e.rows_remapped - e.rows_remapped_uncorrected))
        }),
        ("DCGM_FI_DEV_ROW_REMAP_FAILURE", "gauge", "1 when a memory row could not be remapped.", &|g| {
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
    family(&mut out, "slipway_gpu_healthy", "gauge", "1 when the device may be handed out.", healthy);
    // Bound from above: a kernel that runs may still wait for memory.
    let share = rows.iter().filter(|r| !r.mig).filter_map(|r| {
        let clock = f64::from(r.gpu.clock_sm_mhz?) / f64::from(r.gpu.clock_sm_max_mhz.filter(|m| *m > 0)?);
        Some((r.labels.clone(), clock * f64::from(r.gpu.utilization_percent?) / 100.0))
    });
    family(
        &mut out,
        "slipway_gpu_peak_share",
        "gauge",
        "The most of the card's peak that the work can have reached: time in use times clock.",
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
        "Share of peak for the share of power: 1 when all of both is used.",
        per_watt,
    );
    type ReadUse = fn(&Use) -> f64;
    let uses: [(&str, &str, ReadUse); 3] = [
        (
            "slipway_gpu_pod_energy_joules_total",
            "Energy of the device while the container held it, shared evenly among holders.",
            |u| u.joules,
        ),
        ("slipway_gpu_pod_busy_seconds_total", "Time in which the GPU worked while the container held it.", |u| {
            u.busy_seconds
        }),
        ("slipway_gpu_pod_idle_seconds_total", "Time in which it did not.", |u| u.idle_seconds),
    ];
    for (name, help, read) in uses {
        let samples = rows.iter().filter_map(|r| Some((r.labels.clone(), read(r.holder?.1))));
        family(&mut out, name, "counter", help, samples);
    }
    out
}

fn family(out: &mut String, name: &str, kind: &str, help: &str, samples: impl IntoIterator<Item = (String, f64)>) {
    let mut samples = samples.into_iter().peekable();
    if samples.peek().is_none() {
        return;
    }
    // Writing into a string cannot fail.
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

    #[tokio::test]
    async fn readings_of_a_driver_that_hangs_are_taken_back() {
        let taken_back = Cell::new(false);
        let (answer, answered) = tokio::sync::oneshot::channel();
        let mut answer = Some(answer);
        let stale = || {
            taken_back.set(true);
            answer.take().unwrap().send(7).unwrap();
        };
        // It answers only after the old readings were taken back.
        assert_eq!(watched(answered, Duration::from_millis(10), stale).await, Ok(7));
        assert!(taken_back.get());
        let at_once = watched(std::future::ready(8), Duration::from_secs(60), || unreachable!("it is fresh")).await;
        assert_eq!(at_once, 8);
    }
}
