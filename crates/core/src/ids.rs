//! Identifiers and friendly names.

use uuid::Uuid;

/// The tag on a tracked run that names the submitted run, as `NAMESPACE/NAME`. Run tokens may not change it.
pub const RUN_TAG: &str = "slipway.run";

/// A random id of 32 lowercase hexadecimal digits (a UUID version 4 without dashes), for runs and requests.
pub fn hex32() -> String {
    Uuid::new_v4().simple().to_string()
}

/// An id of 32 lowercase hexadecimal digits that depends only on `parts`, for objects that are recorded again after a crash: the first half
/// of the SHA-256 digest of the parts, each behind its length.
pub fn derived(parts: &[&str]) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part.as_bytes());
    }
    crate::hex::encode(&context.finish().as_ref()[..16])
}

const ADJECTIVES: &[&str] = &[
    "able", "agile", "amber", "brave", "bright", "calm", "clean", "clever", "coastal", "copper", "daring", "deep",
    "eager", "early", "even", "fair", "fast", "fine", "firm", "fresh", "gentle", "glad", "golden", "grand", "green",
    "handy", "hardy", "honest", "humble", "keen", "kind", "level", "light", "lively", "loyal", "lucid", "merry",
    "mild", "neat", "noble", "open", "patient", "plain", "polite", "proud", "quick", "quiet", "rapid", "ready",
    "salty", "sharp", "silver", "sleek", "smart", "solid", "steady", "stout", "sunny", "swift", "tidy", "trim", "true",
    "upbeat", "vivid", "warm", "wise", "witty",
];
const NOUNS: &[&str] = &[
    "anchor", "beacon", "bilge", "boom", "bow", "brig", "buoy", "cabin", "canoe", "capstan", "clipper", "compass",
    "coral", "crane", "cutter", "deck", "dinghy", "dock", "dolphin", "drift", "ferry", "fleet", "galley", "gull",
    "harbor", "heron", "hull", "jetty", "keel", "kelp", "ketch", "lagoon", "launch", "lugger", "mast", "narwhal",
    "oar", "orca", "osprey", "otter", "pelican", "pier", "pilot", "plover", "puffin", "quay", "reef", "rigging",
    "rudder", "sail", "schooner", "seal", "sextant", "shoal", "skiff", "sloop", "spar", "sprit", "stern", "tern",
    "tide", "tiller", "trawler", "walrus", "wharf", "yawl",
];

/// A random readable name, such as `brave-heron-417`, for objects that were created without a name.
pub fn friendly_name() -> String {
    let bits = Uuid::new_v4().as_u128();
    let pick = |words: &[&'static str], shift: u32| words[((bits >> shift) & 0xffff) as usize % words.len()];
    format!("{}-{}-{}", pick(ADJECTIVES, 0), pick(NOUNS, 16), (bits >> 32) as u64 % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_hex_and_distinct() {
        let (a, b) = (hex32(), hex32());
        assert_eq!(a.len(), 32);
        assert!(a.bytes().all(|c| c.is_ascii_hexdigit() && !c.is_ascii_uppercase()));
        assert_ne!(a, b);
    }

    #[test]
    fn derived_ids_depend_on_every_part_and_its_place() {
        assert_eq!(derived(&["run", "task"]), derived(&["run", "task"]));
        assert_eq!(derived(&["run", "task"]).len(), 32);
        assert_ne!(derived(&["run", "task"]), derived(&["runt", "ask"]));
        assert_ne!(derived(&["run", "task"]), derived(&["run", "task", ""]));
    }

    #[test]
    fn friendly_names_have_three_parts() {
        assert_eq!(friendly_name().split('-').count(), 3);
    }
}
