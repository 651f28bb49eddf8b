//! The MIG instances that a card supports, and their possible positions.
//!
//! Positions are defined by NVIDIA (MIG User Guide, "Supported MIG Profiles"; `nvidia-smi mig -lgipp`): instances occupy
//! whole memory slices and begin at fixed slices. NVML reports them for an installed card; [`super::families`] allows planning without
//! a card.

use super::name::ProfileName;
use crate::nvml::{Device, Engines, NvmlError, Placement, codes};

/// A GPU instance profile.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Profile {
    /// NVIDIA's name, such as `1g.10gb` or `1g.10gb+me`.
    pub name: String,
    /// NVML's profile kind (`NVML_GPU_INSTANCE_PROFILE_*`).
    pub kind: u32,
    /// NVML's profile id, which depends on the card.
    pub id: u32,
    /// Number of compute slices.
    pub compute: u32,
    /// Number of memory slices.
    pub size: u32,
    /// Memory slices at which an instance can begin.
    pub starts: Vec<u32>,
    /// Maximum number of instances on one GPU.
    pub limit: u32,
    /// Number of streaming multiprocessors.
    pub multiprocessors: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Media and copy engines.
    pub engines: Engines,
}

impl Profile {
    /// Whether instances own media engines of which a card has one set (`+me`, `+me.all`); a card can have only one such instance.
    pub fn media(&self) -> bool {
        self.name.ends_with("+me") || self.name.ends_with("+me.all")
    }

    /// Whether the name has no attribute (`+me`, `+gfx`, `-me`): the usual profile of its size.
    pub fn is_plain(&self) -> bool {
        !self.name.contains(['+', '-'])
    }
}

/// Kind of the compute instance profile with this number of slices (`NVML_COMPUTE_INSTANCE_PROFILE_*`).
pub(super) fn compute_kind(slices: u32) -> u32 {
    match slices {
        1 => 0,
        2 => 1,
        3 => 2,
        4 => 3,
        8 => 5,
        6 => 6,
        _ => 4,
    }
}

/// The slices and instance profiles of a card.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Geometry {
    /// Name of the card family, such as `h100-80gb`, or of the card.
    pub name: String,
    /// Number of compute slices.
    pub compute: u32,
    /// Number of memory slices.
    pub memory: u32,
    /// Instance profiles, largest first.
    pub profiles: Vec<Profile>,
    /// Decoders, encoders, JPEG engines and optical flow accelerators of the card: as many as any profile allows to have at once.
    #[serde(skip)]
    pub(super) media: [u32; 4],
}

/// NVML's profile kinds (`NVML_GPU_INSTANCE_PROFILE_*`), largest first, each with the suffix of the profile name.
const KINDS: [(u32, &str); 18] = [
    (5, ""),
    (4, ""),
    (6, ""),
    (3, ""),
    (12, "+gfx"),
    (2, ""),
    (17, "+gfx"),
    (1, ""),
    (11, "+gfx"),
    (8, "+me"),
    (16, "+me.all"),
    (14, "-me"),
    (9, ""),
    (0, ""),
    (7, "+me"),
    (10, "+gfx"),
    (15, "+me.all"),
    (13, "-me"),
];

/// The gigabytes in a profile's name: the instance's share of the card, rounded up to eighths, times the card's memory rounded up
/// to GiB. For example, 9,984 of 81,559 MiB are one eighth of 80 GiB: `10gb`.
pub fn name_gigabytes(instance_mib: u64, card_mib: u64) -> u64 {
    let eighths = (instance_mib as f64 / card_mib as f64 * 8.0).ceil();
    let card = card_mib.div_ceil(1024) as f64;
    (eighths / 8.0 * card).round() as u64
}

impl Geometry {
    /// A geometry with these slices and profiles.
    pub fn new(name: impl Into<String>, compute: u32, memory: u32, profiles: Vec<Profile>) -> Self {
        let media = profiles.iter().fold([0; 4], |most: [u32; 4], p| {
            let mine = p.engines.media().map(|n| n * p.limit);
            std::array::from_fn(|i| most[i].max(mine[i]))
        });
        Self { name: name.into(), compute, memory, profiles, media }
    }

    /// The geometry reported by an installed card.
    ///
    /// # Errors
    /// [`NvmlError`] if an NVML call fails.
    pub fn from_device(device: &Device<'_>) -> Result<Self, NvmlError> {
        let card_mib = device.memory()?.total >> 20;
        let mut profiles: Vec<Profile> = Vec::new();
        for (kind, suffix) in KINDS {
            let info = match device.instance_profile(kind) {
                Ok(info) => info,
                Err(e) if matches!(e.code, codes::NOT_SUPPORTED | 2) => continue,
                Err(e) => return Err(e),
            };
            let mut placements = match device.possible_placements(info.id) {
                Ok(placements) => placements,
                Err(e) if e.code == codes::NOT_SUPPORTED => continue,
                Err(e) => return Err(e),
            };
            placements.sort_unstable();
            let Some(first) = placements.first() else { continue };
            // The driver's own name, which nvidia-smi shows, or the same rule for drivers that do not report it.
            let computed = || format!("{}g.{}gb{suffix}", info.slices, name_gigabytes(info.memory_mib, card_mib));
            profiles.push(Profile {
                name: info.name.filter(|n| n.parse::<ProfileName>().is_ok()).unwrap_or_else(computed),
                kind,
                id: info.id,
                compute: info.slices,
                size: first.size,
                starts: placements.iter().map(|p| p.start).collect(),
                limit: info.instances,
                multiprocessors: info.multiprocessors,
                memory_mib: info.memory_mib,
                engines: info.engines,
            });
        }
        let compute = profiles.iter().map(|p| p.compute).max().unwrap_or(0);
        let memory = profiles.iter().flat_map(|p| p.starts.iter().map(|s| s + p.size)).max().unwrap_or(0);
        Ok(Self::new(device.name()?, compute, memory, profiles))
    }

    /// The profile with this name, or with this number as NVML's profile id.
    pub fn profile(&self, name: &str) -> Option<&Profile> {
        let id: Option<u32> = name.parse().ok();
        self.profiles.iter().find(|p| p.name == name || Some(p.id) == id)
    }

    /// Decoders, encoders, JPEG engines and optical flow accelerators of the card.
    pub fn media(&self) -> [u32; 4] {
        self.media
    }

    /// Names of all profiles, separated by commas, for messages.
    pub fn names(&self) -> String {
        self.profiles.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// A GPU instance: profile and position.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Instance {
    /// Name of the profile, such as `1g.10gb`.
    pub profile: String,
    /// Position in memory slices.
    pub at: Placement,
    /// Slices of each compute instance, largest first; empty for the usual one that fills the GPU instance, `[0]` if there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compute: Vec<u32>,
}

impl Instance {
    /// An instance with one compute instance that fills it.
    pub fn new(profile: impl Into<String>, at: Placement) -> Self {
        Self { profile: profile.into(), at, compute: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gigabytes_in_names_are_derived_from_memory() {
        assert_eq!(name_gigabytes(9_984, 81_559), 10);
        assert_eq!(name_gigabytes(4_864, 40_536), 5);
        assert_eq!(name_gigabytes(16_384, 143_771), 18);
        assert_eq!(name_gigabytes(71_000, 143_771), 71);
        assert_eq!(name_gigabytes(5_952, 24_576), 6);
    }
}
