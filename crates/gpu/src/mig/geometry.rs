//! The MIG instances that a card supports, and their possible positions.
//!
//! Positions are defined by NVIDIA (MIG User Guide, "Supported MIG Profiles"; `nvidia-smi mig -lgipp`): instances occupy
//! whole memory slices and begin at fixed slices. NVML reports them for an installed card; the table of card families in
//! this module allows planning without a card.

use crate::nvml::{Device, NvmlError, Placement, codes};

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
}

impl Profile {
    /// Whether instances own the card's media engines; a card can have only one such instance.
    pub fn media(&self) -> bool {
        self.name.ends_with("+me")
    }

    /// Kind of the compute instance that occupies the whole GPU instance (`NVML_COMPUTE_INSTANCE_PROFILE_*`).
    pub fn compute_kind(&self) -> u32 {
        match self.compute {
            1 => 0,
            2 => 1,
            3 => 2,
            4 => 3,
            8 => 5,
            6 => 6,
            _ => 4,
        }
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
}

/// NVML's profile kinds that are queried, each with the suffix of the profile name.
const KINDS: [(u32, &str); 10] =
    [(4, ""), (3, ""), (2, ""), (1, ""), (8, "+me"), (9, ""), (0, ""), (7, "+me"), (5, ""), (6, "")];

/// The gigabytes in a profile's name: the instance's share of the card, rounded up to eighths, times the card's memory rounded up
/// to GiB. For example, 9,984 of 81,559 MiB are one eighth of 80 GiB: `10gb`.
pub fn name_gigabytes(instance_mib: u64, card_mib: u64) -> u64 {
    let eighths = (instance_mib as f64 / card_mib as f64 * 8.0).ceil();
    let card = card_mib.div_ceil(1024) as f64;
    (eighths / 8.0 * card).round() as u64
}

/// A card family: name, memory in MiB, GB as used in names, multiprocessors of instances with 1, 2, 3, 4 and 7 slices.
struct Family(&'static str, u64, u64, [u32; 5]);

/// A short name (`h100`) selects the last family of that card. Sources: `nvidia-smi` on the cards (MiB), MIG User Guide (multiprocessors).
const FAMILIES: [Family; 7] = [
    Family("a100-40gb", 40_536, 40, [14, 28, 42, 56, 98]),
    Family("a100-80gb", 81_920, 80, [14, 28, 42, 56, 98]),
    Family("h100-96gb", 97_871, 96, [16, 32, 60, 64, 132]),
    Family("h100-80gb", 81_559, 80, [16, 32, 60, 64, 132]),
    Family("h200-141gb", 143_771, 141, [16, 32, 60, 64, 132]),
    Family("b200-180gb", 183_359, 180, [18, 36, 70, 72, 148]),
    Family("a30-24gb", 24_576, 24, [14, 28, 0, 56, 0]),
];

/// Names of the families that [`Geometry::family`] accepts.
pub fn families() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|f| f.0)
}

impl Geometry {
    /// The geometry of a family, by full name (`a100-40gb`) or card name (`h100`).
    pub fn family(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let found = FAMILIES
            .iter()
            .find(|f| f.0 == name)
            .or_else(|| FAMILIES.iter().rfind(|f| f.0.split('-').next() == Some(&name)))?;
        Some(found.geometry())
    }

    /// The geometry of a product, by NVML's product name and its memory in MiB.
    pub fn for_product(product: &str, memory_mib: u64) -> Option<Self> {
        let product = product.to_ascii_lowercase();
        let fits = |f: &&Family| {
            let card = f.0.split('-').next().unwrap_or_default();
            product.split(|c: char| !c.is_ascii_alphanumeric()).any(|w| w == card) && memory_mib.abs_diff(f.1) < 2048
        };
        FAMILIES.iter().find(fits).map(Family::geometry)
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
            profiles.push(Profile {
                name: format!("{}g.{}gb{suffix}", info.slices, name_gigabytes(info.memory_mib, card_mib)),
                kind,
                id: info.id,
                compute: info.slices,
                size: first.size,
                starts: placements.iter().map(|p| p.start).collect(),
                limit: info.instances,
                multiprocessors: info.multiprocessors,
                memory_mib: info.memory_mib,
            });
        }
        let compute = profiles.iter().map(|p| p.compute).max().unwrap_or(0);
        let memory = profiles.iter().flat_map(|p| p.starts.iter().map(|s| s + p.size)).max().unwrap_or(0);
        Ok(Self { name: device.name()?, compute, memory, profiles })
    }

    /// The profile with this name.
    pub fn profile(&self, name: &str) -> Option<&Profile> {
        self.profiles.iter().find(|p| p.name == name)
    }

    /// Names of all profiles, separated by commas, for messages.
    pub fn names(&self) -> String {
        self.profiles.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ")
    }
}

impl Family {
    fn geometry(&self) -> Geometry {
        let Self(name, mib, gb, sms) = *self;
        // Kind, NVML's id (as listed by nvidia-smi), compute slices, memory slices, starts, limit, name suffix.
        type Row = (u32, u32, u32, u32, &'static [u32], u32, &'static str);
        let (compute, memory, rows): (u32, u32, &[Row]) = if name.starts_with("a30") {
            (
                4,
                4,
                &[
                    (3, 0, 4, 4, &[0], 1, ""),
                    (1, 5, 2, 2, &[0, 2], 2, ""),
                    (8, 6, 2, 2, &[0, 2], 1, "+me"),
                    (0, 14, 1, 1, &[0, 1, 2, 3], 4, ""),
                    (7, 21, 1, 1, &[0, 1, 2, 3], 1, "+me"),
                ],
            )
        } else {
            (
                7,
                8,
                &[
                    (4, 0, 7, 8, &[0], 1, ""),
                    (3, 5, 4, 4, &[0], 1, ""),
                    (2, 9, 3, 4, &[0, 4], 2, ""),
                    (1, 14, 2, 2, &[0, 2, 4], 3, ""),
                    (9, 15, 1, 2, &[0, 2, 4, 6], 4, ""),
                    (0, 19, 1, 1, &[0, 1, 2, 3, 4, 5, 6], 7, ""),
                    (7, 20, 1, 1, &[0, 1, 2, 3, 4, 5, 6], 1, "+me"),
                ],
            )
        };
        let profiles = rows
            .iter()
            .map(|&(kind, id, slices, size, starts, limit, suffix)| {
                // The driver reserves some memory, so an instance has less than the share of its slices.
                let memory_mib = mib * u64::from(size) / u64::from(memory) - 200 * u64::from(size) / u64::from(memory);
                let gigabytes = (gb as f64 * f64::from(size) / f64::from(memory)).round() as u64;
                Profile {
                    name: format!("{slices}g.{gigabytes}gb{suffix}"),
                    kind,
                    id,
                    compute: slices,
                    size,
                    starts: starts.to_vec(),
                    limit,
                    multiprocessors: sms[[0, 0, 1, 2, 3, 3, 3, 4][slices as usize]],
                    memory_mib,
                }
            })
            .collect();
        Geometry { name: name.into(), compute, memory, profiles }
    }
}

/// A GPU instance: profile and position.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Instance {
    /// Name of the profile, such as `1g.10gb`.
    pub profile: String,
    /// Position in memory slices.
    pub at: Placement,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profile_names_match_nvidia() {
        let names = |family: &str| Geometry::family(family).unwrap().names();
        assert_eq!(names("a100-40gb"), "7g.40gb, 4g.20gb, 3g.20gb, 2g.10gb, 1g.10gb, 1g.5gb, 1g.5gb+me");
        assert_eq!(names("h100-80gb"), "7g.80gb, 4g.40gb, 3g.40gb, 2g.20gb, 1g.20gb, 1g.10gb, 1g.10gb+me");
        assert_eq!(names("h200"), "7g.141gb, 4g.71gb, 3g.71gb, 2g.35gb, 1g.35gb, 1g.18gb, 1g.18gb+me");
        assert_eq!(names("b200"), "7g.180gb, 4g.90gb, 3g.90gb, 2g.45gb, 1g.45gb, 1g.23gb, 1g.23gb+me");
        assert_eq!(names("a30"), "4g.24gb, 2g.12gb, 2g.12gb+me, 1g.6gb, 1g.6gb+me");
        assert!(Geometry::family("t4").is_none());
    }

    #[test]
    fn gigabytes_in_names_are_derived_from_memory() {
        assert_eq!(name_gigabytes(9_984, 81_559), 10);
        assert_eq!(name_gigabytes(4_864, 40_536), 5);
        assert_eq!(name_gigabytes(16_384, 143_771), 18);
        assert_eq!(name_gigabytes(71_000, 143_771), 71);
        assert_eq!(name_gigabytes(5_952, 24_576), 6);
    }

    #[test]
    fn products_are_matched_by_name_and_memory() {
        assert_eq!(Geometry::for_product("NVIDIA H100 80GB HBM3", 81_559).unwrap().name, "h100-80gb");
        assert_eq!(Geometry::for_product("NVIDIA A100-SXM4-40GB", 40_960).unwrap().name, "a100-40gb");
        assert!(Geometry::for_product("NVIDIA L40S", 46_068).is_none());
    }
}
