//! Property tests of this crate's parsers; see `slipway_mutations`.

use slipway_mutations::feed;

use crate::config::Config;

#[test]
fn device_plugin_configurations_never_panic() {
    let valid = "version: v1\nflags:\n  migStrategy: mixed\n  plugin: {passDeviceSpecs: true, deviceListStrategy: [envvar, cdi-cri], deviceIDStrategy: uuid}\nresources: {gpus: []}\nsharing:\n  timeSlicing:\n    renameByDefault: true\n    resources:\n      - {name: nvidia.com/gpu, replicas: 4, devices: all}\n";
    feed(&[valid, "version: v1\nsharing: {mps: {resources: [{name: gpu, replicas: 2}]}}\n"], |text| {
        if let Ok(config) = Config::parse(text) {
            assert!(config.replicas("nvidia.com/gpu").is_none_or(|(_, n)| (2..=65_536).contains(&n)));
        }
    });
}
