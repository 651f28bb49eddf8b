//! Reads the file of NVIDIA's device plugin with the strictness of upstream: a value of the wrong type is an error, an unknown setting is
//! ignored. Everything that is ignored is reported as a warning, which upstream does only for some of it.

use super::tree::{self, Keys, Setting};
use super::{Config, IdStrategy, Imex, ListStrategy, MigStrategy, Replicated, SharedPolicy, Sharing, SharingStrategy};

/// The domain of every resource.
const DOMAIN: &str = "nvidia.com/";
/// Maximum length of a resource's name (upstream, `MaxResourceNameLength`).
const MAX_NAME: usize = 63;
/// Maximum number of replicas per device. A device takes about 64 bytes of the list for the kubelet, whose gRPC client receives messages of
/// at most 4 MiB, so the replicas of one GPU beyond this number can never be offered.
const MAX_REPLICAS: i64 = 65_536;

/// Reads a file.
pub(super) fn read(text: &str) -> Result<Config, String> {
    let mut config = Config::default();
    let warnings = &mut config.warnings;
    let root = tree::parse(text)?;
    let [version, flags, resources, sharing, imex] =
        root.table(["version", "flags", "resources", "sharing", "imex"], Keys::AnyCase, warnings)?;
    if let Some(version) = version.filter(|v| !v.is_null()) {
        match version.text()? {
            "" | "v1" => {}
            other => return Err(version.message(format_args!("unsupported version '{other}': expected v1"))),
        }
    }
    if let Some(flags) = flags {
        read_flags(&flags, &mut config)?;
    }
    if let Some(resources) = resources {
        read_resources(&resources, &mut config.warnings)?;
    }
    if let Some(sharing) = sharing {
        let [slices, mps] = sharing.table(["timeSlicing", "mps"], Keys::AnyCase, &mut config.warnings)?;
        config.sharing = match (slices, mps.filter(|mps| !mps.is_null())) {
            (Some(_), Some(mps)) => {
                return Err(mps.message("sharing has both timeSlicing and mps, but a node supports only one of them"));
            }
            (Some(slices), None) => Some(read_sharing(SharingStrategy::TimeSlicing, &slices, &mut config.warnings)?),
            (None, Some(mps)) => Some(read_sharing(SharingStrategy::Mps, &mps, &mut config.warnings)?),
            (None, None) => None,
        };
    }
    if let Some(imex) = imex {
        config.imex = read_imex(&imex, &mut config.warnings)?;
    }
    Ok(config)
}

/// Reads a setting that may be left out.
fn optional<T>(
    setting: Option<&Setting>,
    read: impl FnOnce(&Setting) -> Result<T, String>,
) -> Result<Option<T>, String> {
    setting.filter(|s| !s.is_null()).map(read).transpose()
}

fn read_flags(flags: &Setting, config: &mut Config) -> Result<(), String> {
    let [mig, fail, mps_root, driver_root, dev_root, gdrcopy, gds, mofed, features, discovery, plugin, gfd] = flags
        .table(
            [
                "migStrategy",
                "failOnInitError",
                "mpsRoot",
                "nvidiaDriverRoot",
                "nvidiaDevRoot",
                "gdrcopyEnabled",
                "gdsEnabled",
                "mofedEnabled",
                "useNodeFeatureAPI",
                "deviceDiscoveryStrategy",
                "plugin",
                "gfd",
            ],
            Keys::AnyCase,
            &mut config.warnings,
        )?;
    let strategies = [("none", MigStrategy::None), ("single", MigStrategy::Single), ("mixed", MigStrategy::Mixed)];
    config.mig = optional(mig.as_ref(), |s| s.choice(&strategies))?.unwrap_or_default();
    let inert = &mut config.warnings;
    no_effect(fail.as_ref(), Setting::bool, &true, "the agent always waits for GPUs and retries", inert)?;
    let text = |s: &Setting| s.text().map(str::to_owned);
    for (setting, default, instead) in [
        (mps_root, "/run/nvidia/mps", "the folder is set with `node run --mps-root`"),
        (driver_root, "/", "the folder is set with `node run --driver-root` (NVIDIA_DRIVER_ROOT)"),
        (dev_root, "/", "device nodes are those below `node run --driver-root` (NVIDIA_DRIVER_ROOT)"),
    ] {
        no_effect(setting.as_ref(), text, &default.to_owned(), instead, inert)?;
    }
    for (setting, variable) in [(gdrcopy, "NVIDIA_GDRCOPY"), (gds, "NVIDIA_GDS"), (mofed, "NVIDIA_MOFED")] {
        if optional(setting.as_ref(), Setting::bool)? == Some(true) {
            config.extra_devices.push(variable);
        }
    }
    no_effect(features.as_ref(), Setting::bool, &false, "labels are written to the node itself", inert)?;
    let discovery_choices = [("auto", "auto"), ("nvml", "nvml"), ("tegra", "tegra")];
    if let Some(setting) = &discovery
        && optional(discovery.as_ref(), |s| s.choice(&discovery_choices))? == Some("tegra")
    {
        inert.push(setting.message("no effect: GPUs are found through NVML only, which Tegra does not have"));
    }
    if let Some(plugin) = plugin {
        read_plugin(&plugin, config)?;
    }
    if let Some(gfd) = gfd {
        read_gfd(&gfd, &mut config.warnings)?;
    }
    Ok(())
}

/// Reads a setting that has no effect here, and warns if it is not the default, which takes effect.
fn no_effect<T: PartialEq>(
    setting: Option<&Setting>,
    read: impl FnOnce(&Setting) -> Result<T, String>,
    default: &T,
    instead: &str,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    if let Some(setting) = setting
        && optional(Some(setting), read)?.is_some_and(|value| value != *default)
    {
        warnings.push(setting.message(format_args!("no effect: {instead}")));
    }
    Ok(())
}

fn read_plugin(plugin: &Setting, config: &mut Config) -> Result<(), String> {
    let [specs, list, ids, prefix, hook, container_root, policy] = plugin.table(
        [
            "passDeviceSpecs",
            "deviceListStrategy",
            "deviceIDStrategy",
            "cdiAnnotationPrefix",
            "nvidiaCTKPath",
            "containerDriverRoot",
            "sharedDevicesAllocationPolicy",
        ],
        Keys::AnyCase,
        &mut config.warnings,
    )?;
    config.device_specs = optional(specs.as_ref(), Setting::bool)?.unwrap_or(false);
    let strategy = |setting: &Setting| {
        setting.choice(&[
            ("envvar", ListStrategy::Envvar),
            ("volume-mounts", ListStrategy::VolumeMounts),
            ("cdi-annotations", ListStrategy::CdiAnnotations),
            ("cdi-cri", ListStrategy::CdiCri),
        ])
    };
    config.list = optional(list.as_ref(), |setting| {
        if setting.is_list() { setting.list()?.iter().map(strategy).collect() } else { Ok(vec![strategy(setting)?]) }
    })?;
    config.ids = optional(ids.as_ref(), |s| s.choice(&[("uuid", IdStrategy::Uuid), ("index", IdStrategy::Index)]))?
        .unwrap_or_default();
    if let Some(text) = optional(prefix.as_ref(), |s| s.text().map(str::to_owned))? {
        config.annotation_prefix = text;
    }
    let policies = [("distributed", SharedPolicy::Distributed), ("packed", SharedPolicy::Packed)];
    config.shared_policy = optional(policy.as_ref(), |s| s.choice(&policies))?.unwrap_or_default();
    let text = |s: &Setting| s.text().map(str::to_owned);
    for (setting, default, instead) in [
        (hook, "/usr/bin/nvidia-ctk", "the CDI specification needs no program of NVIDIA's toolkit on the host"),
        (container_root, "/driver-root", "the folder is set with DRIVER_ROOT_CTR_PATH"),
    ] {
        no_effect(setting.as_ref(), text, &default.to_owned(), instead, &mut config.warnings)?;
    }
    Ok(())
}

/// Reads the settings of GPU Feature Discovery. The agent keeps the labels up to date by itself.
fn read_gfd(gfd: &Setting, warnings: &mut Vec<String>) -> Result<(), String> {
    let [oneshot, no_timestamp, interval, output, machine_type] = gfd.table(
        ["oneshot", "noTimestamp", "sleepInterval", "outputFile", "machineTypeFile"],
        Keys::AnyCase,
        warnings,
    )?;
    no_effect(oneshot.as_ref(), Setting::bool, &false, "the agent keeps running", warnings)?;
    no_effect(no_timestamp.as_ref(), Setting::bool, &false, "there is no label with a time", warnings)?;
    // A duration may be a text or a number of nanoseconds; either way labels are written when something changes.
    let _ = interval;
    let text = |s: &Setting| s.text().map(str::to_owned);
    let file = "/etc/kubernetes/node-feature-discovery/features.d/gfd";
    no_effect(output.as_ref(), text, &file.to_owned(), "labels are written to the node itself", warnings)?;
    let machine = "/sys/class/dmi/id/product_name";
    no_effect(machine_type.as_ref(), text, &machine.to_owned(), "the machine's type is read from that file", warnings)
}

/// Reads the patterns of resources, which upstream ignores with the same warning.
fn read_resources(resources: &Setting, warnings: &mut Vec<String>) -> Result<(), String> {
    let lists = resources.table(["gpus", "mig"], Keys::AnyCase, warnings)?;
    for list in lists.into_iter().flatten() {
        for resource in list.list()? {
            let [pattern, name] = resource.table(["pattern", "name"], Keys::Exact, warnings)?;
            let missing = |key| resource.message(format_args!("a resource needs '{key}'"));
            pattern.ok_or_else(|| missing("pattern"))?.text()?;
            resource_name(&name.ok_or_else(|| missing("name"))?)?;
        }
        if !list.is_empty() {
            warnings.push(list.message("ignored, as by upstream: the names of resources are fixed"));
        }
    }
    Ok(())
}

/// The name of a resource. As upstream, the domain is added to a name without it.
fn resource_name(setting: &Setting) -> Result<String, String> {
    let text = setting.text()?;
    let name = text.strip_prefix(DOMAIN).unwrap_or(text);
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_label = |part: &str| {
        part.starts_with(is_inner) && part.ends_with(is_inner) && part.chars().all(|c| is_inner(c) || c == '-')
    };
    if name.is_empty() {
        return Err(setting.message("the resource has no name"));
    }
    if DOMAIN.len() + name.len() > MAX_NAME {
        return Err(
            setting.message(format_args!("a resource's name has at most {MAX_NAME} characters, with '{DOMAIN}'"))
        );
    }
    if !name.split('.').all(is_label) {
        return Err(setting.message(format_args!(
            "'{text}' is not a resource of {}: after the domain a name has lowercase letters, digits, '-' and '.'",
            DOMAIN.trim_end_matches('/')
        )));
    }
    Ok(format!("{DOMAIN}{name}"))
}

fn read_sharing(strategy: SharingStrategy, shared: &Setting, warnings: &mut Vec<String>) -> Result<Sharing, String> {
    let [rename, fail, list] =
        shared.table(["renameByDefault", "failRequestsGreaterThanOne", "resources"], Keys::Exact, warnings)?;
    let rename = optional(rename.as_ref(), Setting::bool)?.unwrap_or(false);
    // Upstream: with MPS larger requests are rejected unless the setting allows them.
    let one_only = optional(fail.as_ref(), Setting::bool)?.unwrap_or(strategy == SharingStrategy::Mps);
    let list = list.map(|list| list.list()).transpose()?.unwrap_or_default();
    if list.is_empty() {
        return Err(shared.message("no resources specified"));
    }
    let mut resources: Vec<Replicated> = Vec::new();
    for entry in list {
        let [name, new_name, devices, replicas] =
            entry.table(["name", "rename", "devices", "replicas"], Keys::Exact, warnings)?;
        let missing = |key| entry.message(format_args!("a shared resource needs '{key}'"));
        let name_setting = name.ok_or_else(|| missing("name"))?;
        let name = resource_name(&name_setting)?;
        let replicas = replicas.ok_or_else(|| missing("replicas"))?;
        let number = replicas.int()?;
        if !(2..=MAX_REPLICAS).contains(&number) {
            return Err(replicas.message(format_args!("must be from 2 to {MAX_REPLICAS}, but is {number}")));
        }
        if let Some(new_name) = new_name {
            let default = if rename { format!("{name}.shared") } else { String::new() };
            if !(new_name.is_null() || resource_name(&new_name)? == default) {
                warnings.push(new_name.message("ignored, as by upstream: use renameByDefault, which adds '.shared'"));
            }
        }
        if let Some(devices) = devices
            && !is_all(&devices)?
        {
            warnings.push(devices.message("ignored, as by upstream: all devices of the resource are shared"));
        }
        if resources.iter().any(|r| r.name == name) {
            return Err(name_setting.message(format_args!("{name} is listed twice")));
        }
        resources.push(Replicated { name, replicas: u32::try_from(number).unwrap_or(0) });
    }
    Ok(Sharing { strategy, rename, one_only, resources })
}

/// Whether a selection of devices is `all`. Others are a number of devices, or a list of indices and UUIDs.
fn is_all(devices: &Setting) -> Result<bool, String> {
    if devices.is_list() {
        for device in devices.list()? {
            let is_device = match (device.int(), device.text()) {
                (Ok(index), _) => index >= 0,
                (_, Ok(text)) => is_device(text),
                _ => false,
            };
            if !is_device {
                return Err(device.message("expected an index, a MIG index such as 0:1, or a UUID"));
            }
        }
        return Ok(false);
    }
    match (devices.text(), devices.int()) {
        (Ok("all"), _) => Ok(true),
        (_, Ok(count)) if count > 0 => Ok(false),
        _ => Err(devices.message("expected 'all', a number of devices above 0, or a list of devices")),
    }
}

fn is_device(text: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    let is_index = text.splitn(2, ':').all(is_number);
    is_index || text.starts_with("GPU-") || text.starts_with("MIG-")
}

fn read_imex(imex: &Setting, warnings: &mut Vec<String>) -> Result<Option<Imex>, String> {
    let [channels, required] = imex.table(["channelIDs", "required"], Keys::AnyCase, warnings)?;
    let required = optional(required.as_ref(), Setting::bool)?.unwrap_or(false);
    let Some(channels) = channels else { return Ok(None) };
    let numbers = channels.list()?.iter().map(Setting::int).collect::<Result<Vec<_>, _>>()?;
    match numbers.as_slice() {
        [] => Ok(None),
        [0] => Ok(Some(Imex { required })),
        _ => Err(channels.message("must be [] or [0]: only channel 0 can be given to containers")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Based on the examples in NVIDIA's README.
    const TIME_SLICING: &str = "version: v1
flags:
  migStrategy: none
  failOnInitError: true
  nvidiaDriverRoot: /
  plugin:
    passDeviceSpecs: false
    deviceListStrategy: envvar
    deviceIDStrategy: uuid
sharing:
  timeSlicing:
    renameByDefault: true
    failRequestsGreaterThanOne: true
    resources:
    - name: nvidia.com/gpu
      replicas: 10
";

    fn changed(from: &str, to: &str) -> Result<Config, String> {
        assert!(TIME_SLICING.contains(from), "{from}");
        read(&TIME_SLICING.replace(from, to))
    }

    fn warnings(from: &str, to: &str) -> String {
        changed(from, to).unwrap().warnings.join("\n")
    }

    #[test]
    fn upstream_file_is_parsed() {
        let config = read(TIME_SLICING).unwrap();
        assert_eq!(config.list, Some(vec![ListStrategy::Envvar]));
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        let (sharing, replicas) = config.replicas("nvidia.com/gpu").unwrap();
        assert_eq!((replicas, sharing.rename, sharing.one_only), (10, true, true));
        assert!(config.replicas("nvidia.com/mig-1g.10gb").is_none());
        let many = changed("deviceListStrategy: envvar", "deviceListStrategy: [envvar, cdi-cri]").unwrap();
        assert_eq!(many.list, Some(vec![ListStrategy::Envvar, ListStrategy::CdiCri]));
        assert_eq!(changed("replicas: 10", "replicas: 16384").unwrap().replicas("nvidia.com/gpu").unwrap().1, 16384);
        // As in upstream, the version may be left out, and the fields of structs are found in any case.
        assert_eq!(changed("version: v1\n", "").unwrap(), config);
        assert_eq!(changed("migStrategy: none", "MIGStrategy: mixed").unwrap().mig, MigStrategy::Mixed);
        let json = read(
            "{\"version\": \"v1\", \"sharing\": {\"mps\": {\"resources\": [{\"name\": \"gpu\", \"replicas\": 2}]}}}",
        )
        .unwrap();
        assert!(json.replicas("nvidia.com/gpu").unwrap().0.one_only);
        let relaxed =
            read("sharing: {mps: {failRequestsGreaterThanOne: false, resources: [{name: gpu, replicas: 2}]}}").unwrap();
        assert!(!relaxed.replicas("nvidia.com/gpu").unwrap().0.one_only, "upstream allows it from v0.18 on");
    }

    #[test]
    fn unknown_settings_are_reported_with_place_and_path() {
        let text = "version: v1\nflags: {renameByDefault: true, plugins: {passDeviceSpecs: true}}\nsharing:\n  mpss: {}\n  timeSlicing:\n    resources:\n    - {name: nvidia.com/gpu, replicas: 16, bogus: 1}\n    failrequestsGreaterThanOne: true\nfoo: bar\n";
        let config = read(text).unwrap();
        for (warning, expected) in config.warnings.iter().zip([
            "line 9: foo: unknown setting",
            "line 2: flags.renameByDefault: unknown setting",
            "line 2: flags.plugins: unknown setting",
            "line 4: sharing.mpss: unknown setting",
            "line 8: sharing.timeSlicing.failrequestsGreaterThanOne: unknown setting, ignored; known are failRequestsGreaterThanOne (",
            "line 7: sharing.timeSlicing.resources[0].bogus: unknown setting, ignored; known are name, rename, devices, replicas",
        ]) {
            assert!(warning.starts_with(expected), "{warning}");
        }
        assert_eq!(config.warnings.len(), 6, "{:#?}", config.warnings);
        assert!(!config.device_specs);
    }

    #[test]
    fn settings_without_effect_are_reported() {
        for (from, to, expected) in [
            (
                "replicas: 10",
                "replicas: 10\n      rename: mine",
                "line 17: sharing.timeSlicing.resources[0].rename: ignored",
            ),
            (
                "replicas: 10",
                "replicas: 10\n      devices: [0, \"1:0\"]",
                "line 17: sharing.timeSlicing.resources[0].devices: ignored",
            ),
            ("replicas: 10", "replicas: 10\n      devices: 2", "devices: ignored"),
            (
                "sharing:",
                "resources: {gpus: [{pattern: \"*\", name: nvidia.com/gpu}]}\nsharing:",
                "line 10: resources.gpus: ignored",
            ),
            (
                "nvidiaDriverRoot: /",
                "nvidiaDriverRoot: /run/nvidia/driver",
                "line 5: flags.nvidiaDriverRoot: no effect",
            ),
            ("failOnInitError: true", "failOnInitError: false", "flags.failOnInitError: no effect"),
            ("failOnInitError: true", "useNodeFeatureAPI: true", "flags.useNodeFeatureAPI: no effect"),
            ("failOnInitError: true", "deviceDiscoveryStrategy: tegra", "flags.deviceDiscoveryStrategy: no effect"),
            ("failOnInitError: true", "gfd: {oneshot: true}", "flags.gfd.oneshot: no effect"),
        ] {
            assert!(warnings(from, to).contains(expected), "{to}: {}", warnings(from, to));
        }
        for (from, to) in [
            ("replicas: 10", "replicas: 10\n      rename: nvidia.com/gpu.shared\n      devices: all"),
            ("sharing:", "resources: {gpus: []}\nsharing:"),
            ("failOnInitError: true", "gfd: {oneshot: false, noTimestamp: false, sleepInterval: 60s}"),
            (
                "failOnInitError: true",
                "gdrcopyEnabled: false\n  gdsEnabled: null\n  mofedEnabled: false\n  deviceDiscoveryStrategy: auto",
            ),
            ("sharing:", "imex: {channelIDs: [], required: false}\nsharing:"),
        ] {
            assert_eq!(warnings(from, to), "", "{to}");
        }
    }

    #[test]
    fn channels_and_extra_devices_are_read() {
        let imex = |text: &str| changed("sharing:", &format!("imex: {text}\nsharing:"));
        assert_eq!(imex("{channelIDs: [0], required: true}").unwrap().imex, Some(Imex { required: true }));
        assert_eq!(imex("{required: true}").unwrap().imex, None);
        assert!(imex("{channelIDs: [0, 1]}").unwrap_err().starts_with("line 10: imex.channelIDs: must be [] or [0]"));
        let config = changed("failOnInitError: true", "gdsEnabled: true").unwrap();
        assert_eq!(config.extra_devices, ["NVIDIA_GDS"]);
    }

    #[test]
    fn errors_name_the_invalid_setting() {
        for (from, to, expected) in [
            ("version: v1", "version: v2", "line 1: version: unsupported version 'v2'"),
            (
                "replicas: 10",
                "replicas: -1",
                "line 16: sharing.timeSlicing.resources[0].replicas: must be from 2 to 65536",
            ),
            ("replicas: 10", "replicas: 1", "must be from 2"),
            ("replicas: 10", "replicas: 99999999999999999999", "expected a whole number"),
            ("replicas: 10", "replicas: \"10\"", "expected a whole number, found the text '10'"),
            (
                "replicas: 10",
                "replica: 10",
                "line 15: sharing.timeSlicing.resources[0]: a shared resource needs 'replicas'",
            ),
            ("replicas: 10", "replicas: 2\n      devices: some", "expected 'all'"),
            ("replicas: 10", "replicas: 2\n      devices: [x]", "expected an index"),
            ("replicas: 10", "replicas: 2\n    - {name: gpu, replicas: 3}", "nvidia.com/gpu is listed twice"),
            ("nvidia.com/gpu", "example.com/gpu", "is not a resource of nvidia.com"),
            ("nvidia.com/gpu", "nvidia.com/GPU", "lowercase"),
            (
                "migStrategy: none",
                "migStrategy: some",
                "line 3: flags.migStrategy: expected one of none, single, mixed, found the text 'some'",
            ),
            (
                "passDeviceSpecs: false",
                "passDeviceSpecs: \"no\"",
                "flags.plugin.passDeviceSpecs: expected true or false",
            ),
            (
                "deviceListStrategy: envvar",
                "deviceListStrategy: [envvar, x]",
                "flags.plugin.deviceListStrategy[1]: expected one of",
            ),
            (
                "sharing:",
                "sharing:\n  mps: {resources: [{name: gpu, replicas: 2}]}",
                "line 11: sharing.mps: sharing has both",
            ),
            (
                "failRequestsGreaterThanOne: true\n    resources:\n    - name: nvidia.com/gpu\n      replicas: 10\n",
                "resources: []\n",
                "line 11: sharing.timeSlicing: no resources specified",
            ),
            ("version: v1", "version: v1\nflags: {}", "flags"),
            ("flags:", "Flags: {}\nflags:", "line 3: flags: is set twice"),
        ] {
            let error = changed(from, to).unwrap_err();
            assert!(error.contains(expected), "{to}: {error}");
        }
        assert!(read("").unwrap_err().contains("empty"));
        let deep = format!("flags: {}{}", "[".repeat(5_000), "]".repeat(5_000));
        assert!(read(&deep).is_err());
        assert!(read("[1]").unwrap_err().contains("expected a table, found a list"));
    }
}
