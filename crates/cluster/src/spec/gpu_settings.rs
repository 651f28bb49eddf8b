//! Settings of GPUs: `spec.gpu.settings`. Its entries are those of a file for `slipway gpu settings`; only the machine knows the limits of its
//! cards, so it checks the values against them when they are applied.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_core::gpu_settings::{ClockRange, ComputeMode, Gpus, LABEL, Power, Written};

use super::Cluster;
use super::workloads::Sharing;

/// Settings of some of a machine's GPUs. Where several entries select a GPU, later ones override earlier ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GpuSettings {
    /// The GPUs: `all`, indices such as `0-3`, a UUID, a product name such as `H100`, or a list of them.
    #[schemars(with = "TextOrList")]
    pub gpus: Gpus,
    /// The power limit: `350W`, `80%` of the card's default, or `default`.
    #[schemars(with = "Option<TextOrNumber>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_limit: Option<Written<Power>>,
    /// Ranges in which clocks are locked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked_clocks: Option<LockedClocks>,
    /// Whether the driver keeps the GPU initialized without programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistence: Option<bool>,
    /// Whether ECC is on, from the next GPU reset or reboot on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ecc: Option<bool>,
    /// How many processes may use the GPU: `default`, `exclusive-process` or `prohibited`.
    #[schemars(with = "Option<String>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_mode: Option<Written<ComputeMode>>,
}

/// Ranges in which clocks are locked, in MHz: `1200-1410`, `1410`, or `default`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LockedClocks {
    /// The graphics clock.
    #[schemars(with = "Option<TextOrNumber>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graphics: Option<Written<ClockRange>>,
    /// The memory clock.
    #[schemars(with = "Option<TextOrNumber>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Written<ClockRange>>,
}

/// The schema of a value that is a text, or a number where the text looks like one.
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code)] // only its schema is used
enum TextOrNumber {
    Text(String),
    Number(f64),
}

/// The schema of one or several such values.
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code)] // only its schema is used
enum TextOrList {
    One(TextOrNumber),
    Several(Vec<TextOrNumber>),
}

impl GpuSettings {
    fn is_empty(&self) -> bool {
        let locks = self.locked_clocks.as_ref();
        self.power_limit.is_none()
            && locks.is_none_or(|locks| locks.graphics.is_none() && locks.memory.is_none())
            && self.persistence.is_none()
            && self.ecc.is_none()
            && self.compute_mode.is_none()
    }
}

/// Checks the settings, and that nothing else in the file sets them too.
pub(super) fn validate(cluster: &Cluster) -> Result<(), String> {
    let spec = &cluster.spec;
    let settings = &spec.gpu.settings;
    if settings.is_empty() {
        return Ok(());
    }
    if let Some(at) = settings.iter().position(GpuSettings::is_empty) {
        return Err(format!(
            "spec.gpu.settings[{at}] has no settings; use powerLimit, lockedClocks, persistence, ecc or computeMode"
        ));
    }
    let chart = spec.platform.as_ref().and_then(|p| p.values.get("node")?.get("gpuSettings")?.as_object());
    if chart.is_some_and(|files| !files.is_empty()) {
        return Err(
            "spec.gpu.settings and spec.platform.values.node.gpuSettings would both set the GPUs; keep one of them: spec.gpu.settings for \
             all machines, or gpuSettings of the chart to choose with the node label slipway.dev/gpu-settings"
                .into(),
        );
    }
    if let Some(machine) = spec.machines.iter().find(|m| m.labels.contains_key(LABEL)) {
        return Err(format!(
            "spec.machines: {}: the label {LABEL} selects settings of the chart, but spec.gpu.settings sets the GPUs; remove one of them",
            machine.name
        ));
    }
    let differs = |s: &GpuSettings| s.compute_mode.as_ref().is_some_and(|m| m.value != ComputeMode::ExclusiveProcess);
    match (&spec.gpu.sharing, settings.iter().position(differs)) {
        (Some(Sharing::Mps(_)), Some(at)) => Err(format!(
            "spec.gpu.settings[{at}].computeMode: sharing by MPS needs exclusive-process; leave the setting out"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use crate::spec::Cluster;
    use crate::spec::tests::FILE;

    fn parse(more: &str) -> Result<Cluster, String> {
        Cluster::parse(&FILE.replace("  kubernetes:", &format!("{more}\n  kubernetes:")))
    }

    #[test]
    fn settings_are_read_like_those_of_a_file_and_written_again() {
        let cluster = parse("  gpu:\n    settings:\n    - {gpus: [0-3, H100], powerLimit: 350, lockedClocks: {graphics: 1410}}\n    - {gpus: 5, ecc: true}").unwrap();
        let text = serde_saphyr::to_string(&cluster.spec.gpu.settings).unwrap();
        assert!(text.contains("gpus: 0-3,H100") && text.contains("ecc: true") && !text.contains("memory"), "{text}");
        let error = |entry: &str| parse(&format!("  gpu:\n    settings:\n    - {entry}")).unwrap_err();
        assert!(error("{gpus: all, powerLimit: fast}").contains("'fast' is not a power limit"));
        assert!(error("{gpus: all, powerLimit: fast}").contains("line 11"));
        assert!(error("{gpus: 3-1, ecc: true}").contains("'3-1' selects no GPUs"));
        assert!(error("{gpus: [], ecc: true}").contains("the list of GPUs is empty"));
        assert!(error("{gpus: all, lockedClocks: {}}").contains("spec.gpu.settings[0] has no settings"));
        assert!(error("{gpus: all, persistance: true}").contains("persistance"));
    }

    #[test]
    fn one_place_of_the_file_sets_the_gpus() {
        let settings = "gpu: {settings: [{gpus: all, computeMode: default}]";
        let chart = format!(
            "  platform: {{image: 'slipway:1', values: {{node: {{gpuSettings: {{default: x}}}}}}}}\n  {settings}}}"
        );
        assert!(parse(&chart).unwrap_err().contains("would both set the GPUs"));
        assert!(parse(&chart.replace("{default: x}", "{}")).is_ok());
        let text = FILE.replace("name: gpu1,", "name: gpu1, labels: {slipway.dev/gpu-settings: capped},");
        let labelled = text.replace("  kubernetes:", &format!("  {settings}}}\n  kubernetes:"));
        assert!(Cluster::parse(&text).is_ok());
        assert!(Cluster::parse(&labelled).unwrap_err().contains("gpu1: the label slipway.dev/gpu-settings"));
        assert!(parse(&format!("  {settings}, sharing: {{mps: 4}}}}")).unwrap_err().contains("sharing by MPS needs"));
    }
}
