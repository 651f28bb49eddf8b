//! Releases of Kubernetes: until when they are supported, and the one that a new cluster gets.

use slipway_core::clock::rfc3339;

/// The channel of a new cluster: the newest minor version of which MicroK8s has a stable channel.
pub const DEFAULT_CHANNEL: &str = "1.36/stable";

/// Minor versions and the day on which upstream's support ends, about 14 months after the release.
///
/// Source: kubernetes.io, "Releases" and "Patch Releases" (`data/releases/schedule.yaml` and `eol.yaml` of kubernetes/website).
const END_OF_LIFE: [((u32, u32), &str); 7] = [
    ((1, 31), "2025-11-11"),
    ((1, 32), "2026-02-28"),
    ((1, 33), "2026-06-28"),
    ((1, 34), "2026-10-27"),
    ((1, 35), "2027-02-28"),
    ((1, 36), "2027-06-28"),
    ((1, 37), "2027-10-28"),
];
/// The last version before those of [`END_OF_LIFE`] ended on this day.
const EARLIER_END: &str = "2025-07-15";

/// `resource.k8s.io/v1`, the API of dynamic resource allocation, is served by default since this version (Kubernetes, "Dynamic Resource
/// Allocation", feature state).
pub(super) const DYNAMIC_RESOURCES: (u32, u32) = (1, 34);

/// What is known about the support of a minor version at `now_ms`, in milliseconds since 1970, if the user should know it.
pub(super) fn support(minor: (u32, u32), now_ms: i64) -> Option<String> {
    let (major, number) = minor;
    let today = rfc3339(now_ms);
    let (newest, _) = END_OF_LIFE[END_OF_LIFE.len() - 1];
    if minor > newest {
        return Some(format!(
            "Kubernetes {major}.{number} is newer than {}.{}, the newest one known to this slipway",
            newest.0, newest.1
        ));
    }
    let end = END_OF_LIFE.iter().find(|(known, _)| *known == minor).map_or(EARLIER_END, |(_, end)| *end);
    let since = if minor < END_OF_LIFE[0].0 { "at least " } else { "" };
    // Both begin with the date as YYYY-MM-DD, so they compare like dates.
    (today.as_str() > end).then(|| {
        format!("Kubernetes {major}.{number} has had no security fixes since {since}{end}; {DEFAULT_CHANNEL} is a channel with a supported version")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use slipway_core::clock::parse_rfc3339;

    fn at(day: &str) -> i64 {
        parse_rfc3339(&format!("{day}T12:00:00Z")).unwrap()
    }

    #[test]
    fn ended_and_unknown_versions_are_reported() {
        let now = at("2026-11-29");
        assert!(support((1, 34), now).unwrap().contains("since 2026-10-27"));
        assert!(support((1, 12), now).unwrap().contains("since at least 2025-07-15"));
        assert!(support((1, 99), now).unwrap().contains("newer than 1.37"));
        assert_eq!((support((1, 35), now), support((1, 36), now), support((1, 37), now)), (None, None, None));
        assert!(support((1, 36), at("2027-06-29")).unwrap().contains("since 2027-06-28"));
        assert_eq!(support((1, 36), at("2027-06-27")), None);
    }

    #[test]
    fn the_default_channel_is_supported() {
        let minor = crate::spec::minor(DEFAULT_CHANNEL).unwrap();
        assert!(END_OF_LIFE.iter().any(|(known, _)| *known == minor));
        assert_eq!(support(minor, at("2026-11-29")), None);
    }
}
