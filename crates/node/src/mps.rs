//! CUDA's multi-process service (MPS): runs a control daemon per shared resource, and provides the environment of its clients.
//!
//! Source: NVIDIA, "Multi-Process Service" (control utility, `CUDA_MPS_PIPE_DIRECTORY`); the folders and limits are those of
//! NVIDIA's device plugin, so containers built for it work unchanged.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use crate::NodeError;
use crate::config::SharingStrategy;
use crate::driver::Driver;
use crate::kubelet::device_plugin::Mount;
use crate::resources::Offer;

/// The host folder with the pipes and logs of the daemons (`/run/nvidia/mps`).
#[derive(Debug, Clone)]
pub struct Root(pub PathBuf);

impl Root {
    fn pipes(&self, resource: &str) -> PathBuf {
        self.0.join(resource).join("pipe")
    }

    /// Environment variables and mounts of a client container.
    pub fn container(&self, resource: &str) -> (Vec<(String, String)>, Vec<Mount>) {
        let inside = format!("/mps/{resource}/pipe");
        let mounts = vec![
            Mount {
                container_path: inside.clone(),
                host_path: self.pipes(resource).display().to_string(),
                read_only: false,
            },
            // Clients and daemon communicate through shared memory.
            Mount {
                container_path: "/dev/shm".into(),
                host_path: self.0.join("shm").display().to_string(),
                read_only: false,
            },
        ];
        (vec![("CUDA_MPS_PIPE_DIRECTORY".into(), inside)], mounts)
    }
}

/// A running control daemon, which is killed when dropped.
#[derive(Debug)]
struct Daemon {
    resource: String,
    /// UUIDs of the devices that it serves. A change requires a new daemon.
    devices: Vec<String>,
    replicas: u32,
    child: Child,
}

/// Manages the control daemons that the offers require.
#[derive(Debug)]
pub struct Daemons {
    root: Root,
    /// Path of `nvidia-cuda-mps-control`.
    program: PathBuf,
    running: Vec<Daemon>,
}

impl Daemons {
    /// Creates a manager without running daemons.
    pub fn new(root: Root, program: PathBuf) -> Self {
        Self { root, program, running: Vec::new() }
    }

    /// Starts and stops daemons to match the offers, and restarts daemons that died.
    ///
    /// # Errors
    /// The error of the last daemon that could not be started; all others are started.
    pub async fn reconcile(
        &mut self,
        driver: &Driver,
        offers: &[Offer],
        memory_mib: &(dyn Fn(&str) -> u64 + Sync),
    ) -> Result<(), NodeError> {
        let mps = |o: &&Offer| o.shared.is_some_and(|s| s.strategy == SharingStrategy::Mps);
        let desired: Vec<&Offer> = offers.iter().filter(mps).collect();
        let mut kept = Vec::new();
        for mut daemon in std::mem::take(&mut self.running) {
            let matches = desired.iter().any(|o| {
                o.resource == daemon.resource
                    && o.shared.is_some_and(|s| s.replicas == daemon.replicas)
                    && o.units.iter().map(|u| &u.uuid).eq(&daemon.devices)
            });
            if matches && daemon.child.try_wait().is_ok_and(|ended| ended.is_none()) {
                kept.push(daemon);
            } else {
                tracing::info!(resource = daemon.resource, "stopping the MPS control daemon");
                let _ = daemon.child.kill().await; // the daemon may have exited already
            }
        }
        self.running = kept;
        let mut failed = None;
        for offer in desired {
            if self.running.iter().any(|d| d.resource == offer.resource) {
                continue;
            }
            match self.start(driver, offer, memory_mib).await {
                Ok(daemon) => self.running.push(daemon),
                Err(e) => failed = Some(e),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Starts a daemon, and sets the limits of its clients.
    async fn start(
        &self,
        driver: &Driver,
        offer: &Offer,
        memory_mib: &(dyn Fn(&str) -> u64 + Sync),
    ) -> Result<Daemon, NodeError> {
        let resource = offer.resource.clone();
        let replicas = offer.shared.map_or(1, |s| s.replicas).max(1);
        let pipes = self.root.pipes(&resource);
        let logs = self.root.0.join(&resource).join("log");
        for folder in [&pipes, &logs, &self.root.0.join("shm")] {
            std::fs::create_dir_all(folder).map_err(NodeError::io(folder.display().to_string()))?;
        }
        let devices: Vec<String> = offer.units.iter().map(|u| u.uuid.clone()).collect();
        if offer.units.iter().any(|u| u.mig.is_some()) {
            return Err(NodeError::Invalid(format!("{resource}: MPS supports only whole GPUs, not MIG devices")));
        }
        // In exclusive process mode (3) only the MPS daemon can open the GPUs; programs use them through it.
        let indices: Vec<u32> = offer.units.iter().filter_map(|u| u.index.parse().ok()).collect();
        driver
            .with(move |nvml| {
                for index in indices {
                    nvml.device(index)?.set_compute_mode(3)?;
                }
                Ok(())
            })
            .await?;
        let environment = |command: &mut Command| {
            command
                .env("CUDA_MPS_PIPE_DIRECTORY", &pipes)
                .env("CUDA_MPS_LOG_DIRECTORY", &logs)
                .env("CUDA_VISIBLE_DEVICES", devices.join(","))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true);
        };
        let what = self.program.display().to_string();
        let mut command = Command::new(&self.program);
        environment(&mut command);
        let child = command.arg("-f").spawn().map_err(NodeError::io(what.clone()))?;
        // Limit every client to its share of threads and memory.
        let mut commands = format!("set_default_active_thread_percentage {}\n", 100 / replicas);
        for unit in &offer.units {
            let share = memory_mib(&unit.uuid) / u64::from(replicas);
            commands.push_str(&format!("set_default_device_pinned_mem_limit {} {share}M\n", unit.index));
        }
        let mut control = Command::new(&self.program);
        environment(&mut control);
        let mut control = control.stdin(Stdio::piped()).spawn().map_err(NodeError::io(what.clone()))?;
        if let Some(mut input) = control.stdin.take() {
            input.write_all(commands.as_bytes()).await.map_err(NodeError::io(what.clone()))?;
        }
        let outcome = tokio::time::timeout(Duration::from_secs(10), control.wait()).await;
        match outcome {
            Ok(Ok(status)) if status.success() => {
                tracing::info!(resource, replicas, "the MPS control daemon is running");
                Ok(Daemon { resource, devices, replicas, child })
            }
            _ => Err(NodeError::Invalid(format!("{resource}: {what} did not accept commands within 10 s"))),
        }
    }
}
