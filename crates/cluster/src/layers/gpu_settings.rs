//! Settings of GPUs on a machine: a file with them, a program and a systemd unit that apply them at boot, and the removal of all that. The
//! node agent keeps the settings of the same file applied, so a machine with it and one without it have one source.

use slipway_core::gpu_settings::MACHINE_FILE;

use super::{command, file};
use crate::resource::{Layer, Resource, ResourceKind};
use crate::spec::Cluster;

/// The program of the unit. SELinux lets systemd run programs of this folder, but not those of `/var/lib`.
const PROGRAM: &str = "/usr/local/libexec/slipway";
const UNIT: &str = "slipway-gpu-settings.service";
/// Units that start pods.
const KUBERNETES: &str = "kubelet.service k3s.service k3s-agent.service rke2-server.service rke2-agent.service \
                          snap.microk8s.daemon-kubelite.service";
/// The record of earlier values, which the node agent uses too.
const RECORD: &str = "/var/lib/slipway/gpu-settings.json";
/// Restores the earlier settings. Without the kernel module there are none to restore, because the driver forgets them when it is unloaded.
fn restore() -> String {
    format!("\"$SLIPWAY\" gpu settings undo --record {RECORD} --yes || [ ! -e /sys/module/nvidia ]")
}

pub(super) fn resources(cluster: &Cluster) -> Vec<Resource> {
    let (settings, layer) = (&cluster.spec.gpu.settings, Layer::Gpu);
    if settings.is_empty() {
        return vec![removed()];
    }
    let document = serde_json::json!({"version": "v1", "gpuSettings": settings});
    // Serializing texts, booleans and lists cannot fail.
    let text = serde_saphyr::to_string(&document).unwrap_or_default();
    let unit = format!(
        "[Unit]\nDescription=GPU settings of cluster.yaml (slipway)\nConditionPathExists={MACHINE_FILE}\n\
         After=nvidia-persistenced.service nvidia-fabricmanager.service\nBefore={KUBERNETES}\n\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart={PROGRAM} gpu settings apply {MACHINE_FILE} --record {RECORD} --yes\n\n\
         [Install]\nWantedBy=multi-user.target\n"
    );
    let mut applied = command(
        layer,
        "settings",
        &format!("{PROGRAM} gpu settings plan {MACHINE_FILE} --record {RECORD} >/dev/null 2>&1"),
        &format!("\"$SLIPWAY\" gpu settings apply {MACHINE_FILE} --record {RECORD} --yes"),
        "settings of the GPUs",
    );
    if let ResourceKind::Command { undo, .. } = &mut applied.what {
        // Without the file first, so that the node agent does not apply it again.
        *undo = Some(format!("rm -f {MACHINE_FILE}; {}", restore()));
    }
    if settings.iter().any(|s| s.ecc.is_some()) {
        applied = applied.effect("a change of ECC takes effect with the next GPU reset or reboot");
    }
    vec![
        program(),
        file(layer, "settings-file", MACHINE_FILE, text),
        applied.needs(&["gpu/settings-program", "gpu/settings-file"]),
        file(layer, "settings-unit", &format!("/etc/systemd/system/{UNIT}"), unit).then("systemctl daemon-reload"),
        Resource::new(layer, "settings-boot", ResourceKind::Service { name: UNIT.into() })
            .needs(&["gpu/settings-unit", "gpu/settings"]),
    ]
}

/// The program of the unit, which outlives the one that the engine uploads.
fn program() -> Resource {
    let version = env!("CARGO_PKG_VERSION");
    let mut out = command(
        Layer::Gpu,
        "settings-program",
        &format!("[ \"$({PROGRAM} --version 2>/dev/null)\" = 'slipway {version}' ]"),
        &format!(
            "install -D -m 755 \"$SLIPWAY\" {PROGRAM} && {{ ! command -v restorecon >/dev/null || restorecon {PROGRAM}; }}"
        ),
        &format!("program {PROGRAM}"),
    );
    if let ResourceKind::Command { undo, .. } = &mut out.what {
        *undo = Some(format!("rm -f {PROGRAM}"));
    }
    out
}

/// Restores the earlier settings of a machine whose `cluster.yaml` has no settings any more. The file is renamed before and deleted after that,
/// so that neither the node agent applies it again nor an interruption loses the rest of the work.
fn removed() -> Resource {
    let restore = restore();
    let run = format!(
        "set -e\n[ ! -e {MACHINE_FILE} ] || mv -f {MACHINE_FILE} {MACHINE_FILE}.removed\n\
         systemctl disable --now --quiet {UNIT} 2>/dev/null || true\nrm -f /etc/systemd/system/{UNIT}; systemctl daemon-reload\n\
         {restore}\nrm -f {PROGRAM} {MACHINE_FILE}.removed"
    );
    let check = format!("[ ! -e {MACHINE_FILE} ] && [ ! -e {MACHINE_FILE}.removed ]");
    command(Layer::Gpu, "settings", &check, &run, "earlier settings of the GPUs")
}
