//! The MIG geometry of card families, for planning without a card and for cards that report profiles only while MIG is enabled.
//!
//! Names, ids, media engines and positions: NVIDIA MIG User Guide, "Supported MIG Profiles"; memory and multiprocessors:
//! `nvidia-smi mig -lgip` on the cards, as published for A30, A100, H100 (SXM, PCIe, NVL, GH200), H200, RTX PRO 6000 and, in part, for
//! GH200 144G (mig-parted PR 139), B200 (mig-parted PR 187) and GB200 (mig-parted issue 227). Where no output is published the
//! memory is the share of the card; multiprocessors are those of the B200 for GB200 (`3g`, `4g`), B300 and GB300, which have the same
//! compute slices, and the guide's fraction of the card for H20, RTX PRO 5000 and RTX PRO 4500. Names of B300 and GB300: mig-parted's
//! default configuration; of the H20 with 141 GB: NVIDIA AI Enterprise, "vGPU Types Reference".

use super::geometry::{Geometry, Profile};
use crate::nvml::Engines;

/// One instance profile of a family's shape: kind, NVML's id, compute slices, memory slices, starts, limit, suffix of the name, and
/// decoders, encoders, JPEG engines, optical flow accelerators, copy engines.
struct Row(u32, u32, u32, u32, &'static [u32], u32, &'static str, [u32; 5]);

/// Slices of a card and its profiles, largest first.
struct Shape {
    compute: u32,
    memory: u32,
    rows: &'static [Row],
}

const SEVEN: &[u32] = &[0, 1, 2, 3, 4, 5, 6];

const A30: Shape = Shape {
    compute: 4,
    memory: 4,
    rows: &[
        Row(3, 0, 4, 4, &[0], 1, "", [4, 0, 1, 1, 4]),
        Row(1, 5, 2, 2, &[0, 2], 2, "", [2, 0, 0, 0, 2]),
        Row(8, 6, 2, 2, &[0, 2], 1, "+me", [2, 0, 1, 1, 2]),
        Row(0, 14, 1, 1, &[0, 1, 2, 3], 4, "", [0, 0, 0, 0, 1]),
        Row(7, 21, 1, 1, &[0, 1, 2, 3], 1, "+me", [1, 0, 1, 1, 1]),
    ],
};

const A100: Shape = Shape {
    compute: 7,
    memory: 8,
    rows: &[
        Row(4, 0, 7, 8, &[0], 1, "", [5, 0, 1, 1, 7]),
        Row(3, 5, 4, 4, &[0], 1, "", [2, 0, 0, 0, 4]),
        Row(2, 9, 3, 4, &[0, 4], 2, "", [2, 0, 0, 0, 3]),
        Row(1, 14, 2, 2, &[0, 2, 4], 3, "", [1, 0, 0, 0, 2]),
        Row(9, 15, 1, 2, &[0, 2, 4, 6], 4, "", [1, 0, 0, 0, 1]),
        Row(0, 19, 1, 1, SEVEN, 7, "", [0, 0, 0, 0, 1]),
        Row(7, 20, 1, 1, SEVEN, 1, "+me", [1, 0, 1, 1, 1]),
    ],
};

const HOPPER: Shape = Shape {
    compute: 7,
    memory: 8,
    rows: &[
        Row(4, 0, 7, 8, &[0], 1, "", [7, 0, 7, 1, 8]),
        Row(3, 5, 4, 4, &[0], 1, "", [4, 0, 4, 0, 4]),
        Row(2, 9, 3, 4, &[0, 4], 2, "", [3, 0, 3, 0, 3]),
        Row(1, 14, 2, 2, &[0, 2, 4], 3, "", [2, 0, 2, 0, 2]),
        Row(9, 15, 1, 2, &[0, 2, 4, 6], 4, "", [1, 0, 1, 0, 1]),
        Row(0, 19, 1, 1, SEVEN, 7, "", [1, 0, 1, 0, 1]),
        Row(7, 20, 1, 1, SEVEN, 1, "+me", [1, 0, 1, 1, 1]),
    ],
};

const BLACKWELL: Shape = Shape {
    compute: 7,
    memory: 8,
    rows: &[
        Row(4, 0, 7, 8, &[0], 1, "", [7, 0, 7, 1, 16]),
        Row(3, 5, 4, 4, &[0], 1, "", [4, 0, 4, 0, 8]),
        Row(2, 9, 3, 4, &[0, 4], 2, "", [3, 0, 3, 0, 6]),
        Row(1, 14, 2, 2, &[0, 2, 4], 3, "", [2, 0, 2, 0, 4]),
        Row(9, 15, 1, 2, &[0, 2, 4, 6], 4, "", [1, 0, 1, 0, 2]),
        Row(0, 19, 1, 1, SEVEN, 7, "", [1, 0, 1, 0, 2]),
        Row(7, 20, 1, 1, SEVEN, 1, "+me", [1, 0, 1, 1, 2]),
    ],
};

const RTX_PRO_6000: Shape = Shape {
    compute: 4,
    memory: 4,
    rows: &[
        Row(3, 0, 4, 4, &[0], 1, "", [4, 4, 4, 1, 4]),
        Row(12, 32, 4, 4, &[0], 1, "+gfx", [4, 4, 4, 1, 4]),
        Row(1, 5, 2, 2, &[0, 2], 2, "", [2, 2, 2, 0, 2]),
        Row(11, 35, 2, 2, &[0, 2], 2, "+gfx", [2, 2, 2, 0, 2]),
        Row(16, 64, 2, 2, &[0, 2], 1, "+me.all", [4, 4, 4, 1, 2]),
        Row(14, 66, 2, 2, &[0, 2], 2, "-me", [0, 0, 0, 0, 2]),
        Row(0, 14, 1, 1, &[0, 1, 2, 3], 4, "", [1, 1, 1, 0, 1]),
        Row(7, 21, 1, 1, &[0, 1, 2, 3], 1, "+me", [1, 1, 1, 1, 1]),
        Row(10, 47, 1, 1, &[0, 1, 2, 3], 4, "+gfx", [1, 1, 1, 0, 1]),
        Row(15, 65, 1, 1, &[0, 1, 2, 3], 1, "+me.all", [4, 4, 4, 1, 1]),
        Row(13, 67, 1, 1, &[0, 1, 2, 3], 4, "-me", [0, 0, 0, 0, 1]),
    ],
};

/// The ids of this shape and the next are those that the RTX PRO 6000 gives to the same fractions of a card.
const RTX_PRO_5000: Shape = Shape {
    compute: 2,
    memory: 2,
    rows: &[
        Row(1, 0, 2, 2, &[0], 1, "", [3, 3, 1, 1, 4]),
        Row(11, 32, 2, 2, &[0], 1, "+gfx", [3, 3, 1, 1, 4]),
        Row(0, 5, 1, 1, &[0, 1], 2, "", [1, 1, 0, 0, 1]),
        Row(7, 6, 1, 1, &[0, 1], 1, "+me", [1, 1, 1, 1, 1]),
        Row(10, 35, 1, 1, &[0, 1], 2, "+gfx", [1, 1, 0, 0, 1]),
        Row(15, 64, 1, 1, &[0, 1], 1, "+me.all", [3, 3, 1, 1, 1]),
        Row(13, 66, 1, 1, &[0, 1], 2, "-me", [0, 0, 0, 0, 1]),
    ],
};

const RTX_PRO_4500: Shape = Shape {
    compute: 2,
    memory: 2,
    rows: &[
        Row(1, 0, 2, 2, &[0], 1, "", [3, 3, 2, 1, 2]),
        Row(11, 32, 2, 2, &[0], 1, "+gfx", [3, 3, 2, 1, 2]),
        Row(0, 5, 1, 1, &[0, 1], 2, "", [1, 1, 1, 0, 1]),
        Row(10, 35, 1, 1, &[0, 1], 2, "+gfx", [1, 1, 1, 0, 1]),
        Row(15, 64, 1, 1, &[0, 1], 1, "+me.all", [3, 3, 2, 1, 1]),
        Row(13, 66, 1, 1, &[0, 1], 2, "-me", [0, 0, 0, 0, 1]),
    ],
};

/// Instances of one size: compute slices, memory slices, GB in the name, multiprocessors, MiB (0: the share of the card).
struct Size(u32, u32, u32, u32, u64);

/// A card family.
struct Family {
    /// First product and memory, such as `h100-80gb`.
    name: &'static str,
    /// Words of NVML's product name, in lower case.
    products: &'static [&'static str],
    /// Memory of the card in MiB, as `nvidia-smi` reports it.
    mib: u64,
    shape: &'static Shape,
    sizes: &'static [Size],
}

/// A short name (`h100`) selects the last family of that card.
const FAMILIES: [Family; 18] = [
    Family {
        name: "a30-24gb",
        products: &["a30"],
        mib: 24_576,
        shape: &A30,
        sizes: &[Size(4, 4, 24, 56, 23_344), Size(2, 2, 12, 28, 11_672), Size(1, 1, 6, 14, 5_836)],
    },
    Family {
        name: "a100-40gb",
        products: &["a100", "a800"],
        mib: 40_960,
        shape: &A100,
        sizes: &[
            Size(7, 8, 40, 98, 40_192),
            Size(4, 4, 20, 56, 19_968),
            Size(3, 4, 20, 42, 19_968),
            Size(2, 2, 10, 28, 9_856),
            Size(1, 2, 10, 14, 9_856),
            Size(1, 1, 5, 14, 4_864),
        ],
    },
    Family {
        name: "a100-80gb",
        products: &["a100", "a800"],
        mib: 81_920,
        shape: &A100,
        sizes: &[
            Size(7, 8, 80, 98, 80_640),
            Size(4, 4, 40, 56, 40_192),
            Size(3, 4, 40, 42, 40_192),
            Size(2, 2, 20, 28, 19_968),
            Size(1, 2, 20, 14, 19_968),
            Size(1, 1, 10, 14, 9_728),
        ],
    },
    Family {
        name: "h100-96gb",
        products: &["h100", "gh200"],
        mib: 97_871,
        shape: &HOPPER,
        sizes: &[
            Size(7, 8, 96, 132, 95_232),
            Size(4, 4, 48, 64, 47_616),
            Size(3, 4, 48, 60, 47_616),
            Size(2, 2, 24, 32, 23_552),
            Size(1, 2, 24, 26, 23_552),
            Size(1, 1, 12, 16, 11_264),
        ],
    },
    Family {
        name: "h100-94gb",
        products: &["h100", "h100 nvl"],
        mib: 95_830,
        shape: &HOPPER,
        sizes: &[
            Size(7, 8, 94, 132, 94_848),
            Size(4, 4, 47, 64, 47_232),
            Size(3, 4, 47, 60, 47_232),
            Size(2, 2, 24, 32, 22_016),
            Size(1, 2, 24, 26, 22_016),
            Size(1, 1, 12, 16, 10_880),
        ],
    },
    Family {
        name: "h100-pcie-80gb",
        products: &["h100 pcie", "h800 pcie"],
        mib: 81_559,
        shape: &HOPPER,
        sizes: &[
            Size(7, 8, 80, 114, 81_152),
            Size(4, 4, 40, 62, 40_448),
            Size(3, 4, 40, 46, 40_448),
            Size(2, 2, 20, 30, 20_096),
            Size(1, 2, 20, 14, 20_096),
            Size(1, 1, 10, 14, 9_984),
        ],
    },
    Family {
        name: "h100-80gb",
        products: &["h100", "h800"],
        mib: 81_559,
        shape: &HOPPER,
        sizes: &[
            Size(7, 8, 80, 132, 81_152),
            Size(4, 4, 40, 64, 40_448),
            Size(3, 4, 40, 60, 40_448),
            Size(2, 2, 20, 32, 20_096),
            Size(1, 2, 20, 26, 20_096),
            Size(1, 1, 10, 16, 9_984),
        ],
    },
    Family {
        name: "h20-141gb",
        products: &["h20"],
        mib: 143_771,
        shape: &HOPPER,
        sizes: &[
            Size(7, 8, 141, 78, 0),
            Size(4, 4, 71, 44, 0),
            Size(3, 4, 71, 32, 0),
            Size(2, 2, 35, 22, 0),
            Size(1, 2, 35, 10, 0),
            Size(1, 1, 18, 10, 0),
        ],
    },
    Family {
        name: "h20-96gb",
        products: &["h20"],
        mib: 97_871,
        shape: &HOPPER,
        sizes: &[
            Size(7, 8, 96, 78, 0),
            Size(4, 4, 48, 44, 0),
            Size(3, 4, 48, 32, 0),
            Size(2, 2, 24, 22, 0),
            Size(1, 2, 24, 10, 0),
            Size(1, 1, 12, 10, 0),
        ],
    },
    Family {
        name: "gh200-144gb",
        products: &["gh200"],
        mib: 146_831,
        shape: &HOPPER,
        sizes: &[
            Size(7, 8, 144, 132, 0),
            Size(4, 4, 72, 64, 0),
            Size(3, 4, 72, 60, 0),
            Size(2, 2, 36, 32, 36_096),
            Size(1, 2, 36, 26, 36_096),
            Size(1, 1, 18, 16, 17_920),
        ],
    },
    Family {
        name: "h200-141gb",
        products: &["h200"],
        mib: 143_771,
        shape: &HOPPER,
        sizes: &[
            Size(7, 8, 141, 132, 143_104),
            Size(4, 4, 71, 64, 71_168),
            Size(3, 4, 71, 60, 71_168),
            Size(2, 2, 35, 32, 33_024),
            Size(1, 2, 35, 26, 33_024),
            Size(1, 1, 18, 16, 16_384),
        ],
    },
    Family {
        name: "b200-180gb",
        products: &["b200"],
        mib: 183_359,
        shape: &BLACKWELL,
        sizes: &[
            Size(7, 8, 180, 148, 0),
            Size(4, 4, 90, 72, 0),
            Size(3, 4, 90, 70, 0),
            Size(2, 2, 45, 36, 45_312),
            Size(1, 2, 45, 30, 45_312),
            Size(1, 1, 23, 18, 20_992),
        ],
    },
    Family {
        name: "gb200-186gb",
        products: &["gb200"],
        mib: 189_471,
        shape: &BLACKWELL,
        sizes: &[
            Size(7, 8, 186, 152, 0),
            Size(4, 4, 93, 72, 0),
            Size(3, 4, 93, 70, 0),
            Size(2, 2, 47, 38, 46_592),
            Size(1, 2, 47, 32, 46_592),
            Size(1, 1, 23, 18, 22_528),
        ],
    },
    Family {
        name: "b300-269gb",
        products: &["b300"],
        mib: 275_040,
        shape: &BLACKWELL,
        sizes: &[
            Size(7, 8, 269, 148, 0),
            Size(4, 4, 135, 72, 0),
            Size(3, 4, 135, 70, 0),
            Size(2, 2, 67, 36, 0),
            Size(1, 2, 67, 30, 0),
            Size(1, 1, 34, 18, 0),
        ],
    },
    Family {
        name: "gb300-278gb",
        products: &["gb300"],
        mib: 284_208,
        shape: &BLACKWELL,
        sizes: &[
            Size(7, 8, 278, 152, 0),
            Size(4, 4, 139, 72, 0),
            Size(3, 4, 139, 70, 0),
            Size(2, 2, 70, 38, 0),
            Size(1, 2, 70, 32, 0),
            Size(1, 1, 35, 18, 0),
        ],
    },
    Family {
        name: "rtx-pro-6000-96gb",
        products: &["rtx pro 6000"],
        mib: 97_887,
        shape: &RTX_PRO_6000,
        sizes: &[Size(4, 4, 96, 188, 97_280), Size(2, 2, 48, 94, 48_512), Size(1, 1, 24, 46, 24_192)],
    },
    Family {
        name: "rtx-pro-5000-48gb",
        products: &["rtx pro 5000"],
        mib: 48_935,
        shape: &RTX_PRO_5000,
        sizes: &[Size(2, 2, 48, 110, 0), Size(1, 1, 24, 54, 0)],
    },
    Family {
        name: "rtx-pro-4500-32gb",
        products: &["rtx pro 4500"],
        mib: 32_623,
        shape: &RTX_PRO_4500,
        sizes: &[Size(2, 2, 32, 82, 0), Size(1, 1, 16, 40, 0)],
    },
];

/// Names of the families that [`Geometry::family`] accepts.
pub fn families() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|f| f.name)
}

impl Geometry {
    /// The geometry of a family, by full name (`a100-40gb`, `gh200-96gb`) or product (`h100`, `RTX PRO 6000`).
    pub fn family(name: &str) -> Option<Self> {
        let name = name.trim().to_ascii_lowercase().replace(' ', "-");
        let named = |f: &&Family| {
            let size = f.name.rsplit('-').next().unwrap_or_default();
            f.name == name || f.products.iter().any(|p| format!("{}-{size}", p.replace(' ', "-")) == name)
        };
        let product = |f: &&Family| f.products.iter().any(|p| p.replace(' ', "-") == name);
        FAMILIES.iter().find(named).or_else(|| FAMILIES.iter().rfind(product)).map(Family::geometry)
    }

    /// The geometry of a product, by NVML's product name and its memory in MiB.
    pub fn for_product(product: &str, memory_mib: u64) -> Option<Self> {
        let product = product.to_ascii_lowercase();
        let words: Vec<&str> = product.split(|c: char| !c.is_ascii_alphanumeric()).collect();
        // The most specific product name, then the nearest memory: an H100 NVL has nearly as much as a GH200.
        let specific = |f: &Family| {
            let matching = f.products.iter().filter(|p| p.split(' ').all(|w| words.contains(&w)));
            matching.map(|p| p.split(' ').count()).max()
        };
        let fits = FAMILIES.iter().filter(|f| memory_mib.abs_diff(f.mib) < 2048);
        let ranked = fits.filter_map(|f| Some((specific(f)?, std::cmp::Reverse(memory_mib.abs_diff(f.mib)), f)));
        ranked.max_by_key(|(words, distance, _)| (*words, *distance)).map(|(.., f)| f.geometry())
    }
}

impl Family {
    fn geometry(&self) -> Geometry {
        let profiles = self.shape.rows.iter().filter_map(|row| {
            let &Row(kind, id, compute, size, starts, limit, suffix, [decoders, encoders, jpeg, ofa, copy]) = row;
            let Size(.., gigabytes, multiprocessors, mib) =
                self.sizes.iter().find(|s| s.0 == compute && s.1 == size)?;
            // The driver keeps about 200 MiB of a card for itself.
            let share = (self.mib - 200) * u64::from(size) / u64::from(self.shape.memory);
            Some(Profile {
                name: format!("{compute}g.{gigabytes}gb{suffix}"),
                kind,
                id,
                compute,
                size,
                starts: starts.to_vec(),
                limit,
                multiprocessors: *multiprocessors,
                memory_mib: if *mib == 0 { share } else { *mib },
                engines: Engines { decoders, encoders, jpeg, ofa, copy },
            })
        });
        Geometry::new(self.name, self.shape.compute, self.shape.memory, profiles.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(family: &str) -> String {
        Geometry::family(family).unwrap().names()
    }

    #[test]
    fn profile_names_match_nvidia() {
        assert_eq!(names("a100-40gb"), "7g.40gb, 4g.20gb, 3g.20gb, 2g.10gb, 1g.10gb, 1g.5gb, 1g.5gb+me");
        assert_eq!(names("h100-80gb"), "7g.80gb, 4g.40gb, 3g.40gb, 2g.20gb, 1g.20gb, 1g.10gb, 1g.10gb+me");
        assert_eq!(names("h100-94gb"), "7g.94gb, 4g.47gb, 3g.47gb, 2g.24gb, 1g.24gb, 1g.12gb, 1g.12gb+me");
        assert_eq!(names("gh200-96gb"), "7g.96gb, 4g.48gb, 3g.48gb, 2g.24gb, 1g.24gb, 1g.12gb, 1g.12gb+me");
        assert_eq!(names("gh200-144gb"), "7g.144gb, 4g.72gb, 3g.72gb, 2g.36gb, 1g.36gb, 1g.18gb, 1g.18gb+me");
        assert_eq!(names("h200"), "7g.141gb, 4g.71gb, 3g.71gb, 2g.35gb, 1g.35gb, 1g.18gb, 1g.18gb+me");
        assert_eq!(names("b200"), "7g.180gb, 4g.90gb, 3g.90gb, 2g.45gb, 1g.45gb, 1g.23gb, 1g.23gb+me");
        assert_eq!(names("gb200"), "7g.186gb, 4g.93gb, 3g.93gb, 2g.47gb, 1g.47gb, 1g.23gb, 1g.23gb+me");
        assert_eq!(names("b300"), "7g.269gb, 4g.135gb, 3g.135gb, 2g.67gb, 1g.67gb, 1g.34gb, 1g.34gb+me");
        assert_eq!(names("gb300"), "7g.278gb, 4g.139gb, 3g.139gb, 2g.70gb, 1g.70gb, 1g.35gb, 1g.35gb+me");
        assert_eq!(names("h20"), "7g.96gb, 4g.48gb, 3g.48gb, 2g.24gb, 1g.24gb, 1g.12gb, 1g.12gb+me");
        assert_eq!(names("h20-141gb"), "7g.141gb, 4g.71gb, 3g.71gb, 2g.35gb, 1g.35gb, 1g.18gb, 1g.18gb+me");
        assert_eq!(names("a30"), "4g.24gb, 2g.12gb, 2g.12gb+me, 1g.6gb, 1g.6gb+me");
        assert_eq!(
            names("RTX PRO 6000"),
            "4g.96gb, 4g.96gb+gfx, 2g.48gb, 2g.48gb+gfx, 2g.48gb+me.all, 2g.48gb-me, 1g.24gb, 1g.24gb+me, 1g.24gb+gfx, \
             1g.24gb+me.all, 1g.24gb-me"
        );
        assert!(Geometry::family("t4").is_none());
        for family in FAMILIES {
            let geometry = family.geometry();
            assert_eq!(geometry.profiles.len(), family.shape.rows.len(), "{}", family.name);
        }
    }

    #[test]
    fn multiprocessors_belong_to_the_profile() {
        let profile = |family: &str, name: &str| {
            let profile = Geometry::family(family).unwrap().profile(name).unwrap().clone();
            (profile.multiprocessors, profile.memory_mib)
        };
        assert_eq!(profile("h100-80gb", "1g.20gb"), (26, 20_096));
        assert_eq!(profile("h100-pcie-80gb", "1g.20gb").0, 14);
        assert_eq!(profile("a100-80gb", "1g.20gb").0, 14);
        assert_eq!((profile("gb200", "1g.47gb").0, profile("gb200", "2g.47gb").0), (32, 38));
        assert_eq!(profile("b200", "1g.45gb").0, 30);
        assert_eq!(profile("rtx-pro-6000", "1g.24gb+me.all"), (46, 24_192));
    }

    #[test]
    fn products_are_matched_by_name_and_memory() {
        let name = |product: &str, mib| Geometry::for_product(product, mib).map(|g| g.name);
        for (product, mib, family) in [
            ("NVIDIA H100 80GB HBM3", 81_559, "h100-80gb"),
            ("NVIDIA H100 PCIe", 81_559, "h100-pcie-80gb"),
            ("NVIDIA H100 NVL", 95_830, "h100-94gb"),
            ("NVIDIA GH200 480GB", 97_871, "h100-96gb"),
            ("NVIDIA GH200 144G HBM3e", 146_831, "gh200-144gb"),
            ("NVIDIA A100-SXM4-40GB", 40_536, "a100-40gb"),
            ("NVIDIA A800-SXM4-80GB", 81_251, "a100-80gb"),
            ("NVIDIA H200 NVL", 143_771, "h200-141gb"),
            ("NVIDIA H20-3e", 143_771, "h20-141gb"),
            ("NVIDIA RTX PRO 4500 Blackwell Server Edition", 32_623, "rtx-pro-4500-32gb"),
            ("NVIDIA B300 SXM6 AC", 275_040, "b300-269gb"),
            ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 97_887, "rtx-pro-6000-96gb"),
        ] {
            assert_eq!(name(product, mib).as_deref(), Some(family), "{product}");
        }
        assert_eq!(name("NVIDIA L40S", 46_068), None);
        // Every card of the sheet that NVIDIA's guide lists as able to do MIG has a geometry.
        let with = crate::sheet::cards().into_iter().filter(|c| name(c.name, c.memory_mib).is_some()).count();
        assert_eq!(with, 30);
    }
}
