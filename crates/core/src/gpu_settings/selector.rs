//! A selection of GPUs as text: `all`, indices, UUIDs and product names.

use std::fmt;
use std::str::FromStr;

/// The highest index that a selection may name; it bounds the size of a range.
const MAX_INDEX: u32 = 4096;

/// A part of a selection.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    All,
    /// First and last index.
    Range(u32, u32),
    Uuid(String),
    /// Words of a product name, such as `H100` or `RTX A4000`.
    Name(String),
}

/// GPUs by index, UUID or product name: `all`, `0-3,5`, `GPU-8f6c...`, `H100`, or several of them with commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector(Vec<Part>);

/// What identifies a GPU.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// Index of the GPU.
    pub index: u32,
    /// UUID, `GPU-...`; empty if it cannot be read.
    pub uuid: &'a str,
    /// Product name, such as `NVIDIA H100 80GB HBM3`.
    pub name: &'a str,
}

/// The words of a product name; `A100-SXM4-80GB` has three.
fn words(name: &str) -> Vec<String> {
    name.split(|c: char| c.is_whitespace() || c == '-').filter(|w| !w.is_empty()).map(str::to_ascii_lowercase).collect()
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid =
            || format!("'{text}' selects no GPUs: use all, indices such as 0-3,5, GPU-<uuid>, or a product name");
        let text = text.trim();
        if text.is_empty() || text.starts_with("MIG-") {
            return Err(invalid());
        }
        if text == "all" {
            return Ok(Self::All);
        }
        if text.starts_with("GPU-") {
            return Ok(Self::Uuid(text.to_owned()));
        }
        if !text.bytes().all(|b| b.is_ascii_digit() || b == b'-') {
            return Ok(Self::Name(text.to_owned()));
        }
        let (a, b) = text.split_once('-').unwrap_or((text, text));
        match (a.parse(), b.parse()) {
            (Ok(a), Ok(b)) if a <= b && b <= MAX_INDEX => Ok(Self::Range(a, b)),
            _ => Err(invalid()),
        }
    }
}

impl FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Range(a, b) if a == b => write!(f, "{a}"),
            Self::Range(a, b) => write!(f, "{a}-{b}"),
            Self::Uuid(text) | Self::Name(text) => f.write_str(text),
        }
    }
}

impl Part {
    fn covers(&self, gpu: Identity<'_>) -> bool {
        match self {
            Self::All => true,
            Self::Range(a, b) => (*a..=*b).contains(&gpu.index),
            Self::Uuid(uuid) => uuid.eq_ignore_ascii_case(gpu.uuid),
            Self::Name(name) => words(gpu.name).windows(words(name).len().max(1)).any(|w| w == words(name)),
        }
    }
}

impl Selector {
    /// All GPUs.
    pub fn all() -> Self {
        Self(vec![Part::All])
    }

    /// A selection of everything that one of the given selections selects.
    pub fn union(selectors: impl IntoIterator<Item = Self>) -> Self {
        Self(selectors.into_iter().flat_map(|s| s.0).collect())
    }

    /// The number of selected indices, without knowing the machine; `None` if the selection has other parts.
    pub fn count(&self) -> Option<usize> {
        let sizes = self.0.iter().map(|part| match part {
            Part::Range(first, last) => Some((last - first) as usize + 1),
            _ => None,
        });
        sizes.sum()
    }

    /// Whether a GPU is selected.
    pub fn covers(&self, gpu: Identity<'_>) -> bool {
        self.0.iter().any(|part| part.covers(gpu))
    }

    /// Indices that no GPU of a machine with `count` GPUs has.
    pub fn missing_index(&self, count: u32) -> Option<u32> {
        self.0.iter().find_map(|part| match part {
            Part::Range(_, last) if *last >= count => Some(*last),
            _ => None,
        })
    }

    /// The first UUID or product name that none of the GPUs has.
    pub fn unmatched<'a>(&self, gpus: impl Iterator<Item = Identity<'a>> + Clone) -> Option<String> {
        let named = self.0.iter().filter(|part| matches!(part, Part::Uuid(_) | Part::Name(_)));
        named.into_iter().find(|part| !gpus.clone().any(|gpu| part.covers(gpu))).map(Part::to_string)
    }

    /// The indices of the selected GPUs, in ascending order.
    ///
    /// # Errors
    /// A message if a part of the selection matches no GPU.
    pub fn indices<'a>(&self, gpus: impl Iterator<Item = Identity<'a>> + Clone) -> Result<Vec<u32>, String> {
        let count = u32::try_from(gpus.clone().count()).unwrap_or(MAX_INDEX);
        if let Some(index) = self.missing_index(count) {
            return Err(missing(index, count));
        }
        if let Some(part) = self.unmatched(gpus.clone()) {
            return Err(format!("there is no GPU '{part}'; `slipway gpu ls -o wide` lists names and UUIDs"));
        }
        Ok(gpus.filter(|gpu| self.covers(*gpu)).map(|gpu| gpu.index).collect())
    }
}

/// The message about an index that a machine with `count` GPUs does not have.
pub fn missing(index: u32, count: u32) -> String {
    match count {
        0 => format!("there is no GPU {index}: the machine has none"),
        _ => format!("there is no GPU {index}; there are {count} GPUs, 0 to {}", count - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_selected_by_index_uuid_and_words_of_their_name() {
        let gpus = [
            Identity { index: 0, uuid: "GPU-aa", name: "NVIDIA A100-SXM4-80GB" },
            Identity { index: 1, uuid: "GPU-bb", name: "NVIDIA A10" },
            Identity { index: 2, uuid: "GPU-cc", name: "NVIDIA RTX A4000" },
        ];
        let select = |text: &str| text.parse::<Selector>().and_then(|s| s.indices(gpus.iter().copied()));
        assert_eq!(select("all").unwrap(), [0, 1, 2]);
        assert_eq!(select("0-1").unwrap(), [0, 1]);
        assert_eq!(select("2,GPU-AA").unwrap(), [0, 2]);
        // The A10 is no A100.
        assert_eq!(select("A10").unwrap(), [1]);
        assert_eq!(select("a100-sxm4").unwrap(), [0]);
        assert_eq!(select("rtx a4000").unwrap(), [2]);
        let count = |text: &str| text.parse::<Selector>().unwrap().count();
        assert_eq!((count("0-3,5"), count("all"), count("0,H100")), (Some(5), None, None));
        assert!(select("1-3").unwrap_err().contains("there is no GPU 3; there are 3 GPUs, 0 to 2"));
        assert!(select("H100").unwrap_err().contains("'H100'"));
        assert!(select("GPU-dd").unwrap_err().contains("'GPU-dd'"));
        for text in ["", "3-1", "0-99999", "0,,1", "MIG-aa", "-"] {
            assert!(select(text).unwrap_err().contains("selects no GPUs"), "{text}");
        }
    }
}
