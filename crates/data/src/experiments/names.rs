//! Names of experiments.

use std::hash::{BuildHasher, RandomState};

use super::exists_error;
use crate::error::DataError;
use crate::revision::reference;
use crate::scm::Git;

const ADJECTIVES: &[&str] = &[
    "amber", "bold", "brisk", "calm", "clear", "coral", "crisp", "deft", "early", "fair", "fleet", "fresh", "gentle",
    "glad", "golden", "grand", "hardy", "hazel", "icy", "jolly", "keen", "kind", "late", "lively", "lucid", "mellow",
    "merry", "mild", "neat", "nimble", "noble", "olive", "plain", "proud", "quick", "quiet", "rapid", "ready", "rosy",
    "royal", "rustic", "sage", "sharp", "silver", "sleek", "smart", "snowy", "solid", "spry", "steady", "still",
    "stout", "sunny", "swift", "tidy", "tranquil", "vast", "vivid", "warm", "wide", "wise", "witty", "young", "zesty",
];
const NOUNS: &[&str] = &[
    "acorn", "anchor", "arbor", "badger", "beacon", "birch", "bison", "brook", "cedar", "cliff", "comet", "condor",
    "creek", "crane", "delta", "dune", "eagle", "ember", "falcon", "fern", "finch", "fjord", "flint", "forest",
    "garnet", "glade", "grove", "harbor", "hawk", "heron", "island", "jasper", "lagoon", "lantern", "lark", "lynx",
    "maple", "marsh", "meadow", "mesa", "moose", "moss", "oasis", "orbit", "otter", "pebble", "pine", "prairie",
    "quartz", "rapids", "raven", "reef", "ridge", "river", "robin", "summit", "thicket", "tiger", "tulip", "valley",
    "walnut", "willow", "wren", "zephyr",
];
/// Attempts to find a free name of two words, before a number is appended.
const ATTEMPTS: u32 = 20;

/// Rejects a name that cannot be that of an experiment.
///
/// # Errors
/// [`DataError::Invalid`]
pub fn check(git: &Git, baseline: &str, name: &str) -> Result<(), DataError> {
    if name.is_empty() || name.contains('/') || !git.is_reference_name(&reference(baseline, name)) {
        return Err(DataError::Invalid(format!(
            "'{name}' is not a valid name of an experiment: it has to be one of a Git reference, without '/'"
        )));
    }
    Ok(())
}

/// The name of a new experiment: the given one, which no experiment of the baseline may have unless it is to be replaced, or a random one.
///
/// # Errors
/// [`DataError::Invalid`] if the name is not valid or exists.
pub fn choose(git: &Git, baseline: &str, name: Option<&str>, replace: bool) -> Result<String, DataError> {
    let Some(name) = name else { return free(git, baseline) };
    check(git, baseline, name)?;
    if !replace && !git.references(&reference(baseline, name))?.is_empty() {
        return Err(exists_error(name));
    }
    Ok(name.to_owned())
}

/// A random name that no experiment of the baseline has.
///
/// # Errors
/// If git cannot be run.
pub fn free(git: &Git, baseline: &str) -> Result<String, DataError> {
    let mut name = String::new();
    for attempt in 0..=ATTEMPTS {
        let random = RandomState::new().hash_one(attempt);
        let pick =
            |words: &[&'static str], random: u64| words[usize::try_from(random % words.len() as u64).unwrap_or(0)];
        name = format!("{}-{}", pick(ADJECTIVES, random), pick(NOUNS, random >> 32));
        if attempt == ATTEMPTS {
            name.push_str(&format!("-{}", random >> 40));
        }
        if git.references(&reference(baseline, &name))?.is_empty() {
            break;
        }
    }
    Ok(name)
}
