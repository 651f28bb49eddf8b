//! The grammar of MIG profile names: `[<compute slices>c.]<GPU slices>g.<memory>gb[+attribute|-attribute]`.
//! Source: NVIDIA MIG User Guide, "MIG Device Names"; go-nvlib's parser, which mig-parted and the device plugin use.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::GpuError;

/// Maximum number of instances in one list. Each takes memory in the search for a placement.
const MAX_INSTANCES: u32 = 100_000;

/// A parsed profile name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileName {
    /// Compute slices of the compute instance.
    pub compute: u32,
    /// Compute slices of the GPU instance.
    pub slices: u32,
    /// Memory as used in names.
    pub gigabytes: u32,
    /// The attribute with its sign, such as `+me.all` or `-me`; empty without one.
    pub attribute: String,
}

impl ProfileName {
    /// The name of the GPU instance, without the compute slices.
    pub fn gpu_instance(&self) -> String {
        format!("{}g.{}gb{}", self.slices, self.gigabytes, self.attribute)
    }
}

impl fmt::Display for ProfileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.compute != self.slices {
            write!(f, "{}c.", self.compute)?;
        }
        f.write_str(&self.gpu_instance())
    }
}

impl FromStr for ProfileName {
    type Err = GpuError;

    fn from_str(text: &str) -> Result<Self, GpuError> {
        let parsed = || {
            let at = text.find(['+', '-']).unwrap_or(text.len());
            let (fields, attribute) = text.split_at(at);
            let word = |c: char| c.is_ascii_alphanumeric() || c == '.';
            let valid =
                |a: &str| a.starts_with(|c: char| c.is_ascii_alphabetic()) && !a.ends_with('.') && a.chars().all(word);
            if !attribute.is_empty() && !attribute[1..].split(',').all(valid) {
                return None;
            }
            let number = |field: &str, unit: &str| -> Option<u32> {
                let digits = field.strip_suffix(unit)?;
                digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
            };
            let fields: Vec<&str> = fields.split('.').collect();
            let (compute, slices, memory) = match fields.as_slice() {
                [slices, memory] => (None, slices, memory),
                [compute, slices, memory] => (Some(number(compute, "c")?), slices, memory),
                _ => return None,
            };
            let slices = number(slices, "g")?;
            let gigabytes = number(memory, "gb")?;
            Some(Self { compute: compute.unwrap_or(slices), slices, gigabytes, attribute: attribute.to_owned() })
        };
        parsed().filter(|p| p.compute > 0 && p.compute <= p.slices).ok_or_else(|| {
            GpuError::Invalid(format!(
                "'{text}' is not a MIG profile: expected for example 3x1g.10gb, 1g.10gb+me or 1c.3g.40gb"
            ))
        })
    }
}

/// Parses profiles with counts, such as `3x1g.10gb + 1x3g.40gb`, `1g.10gb,3g.40gb`, `3x1c.3g.40gb` or `7*1g.24gb+gfx`. A number
/// alone is NVML's profile id, as in `nvidia-smi mig -cgi 19,19`.
///
/// # Errors
/// [`GpuError::Invalid`] that quotes the invalid part.
pub fn parse(text: &str) -> Result<BTreeMap<String, u32>, GpuError> {
    let mut instances = BTreeMap::new();
    let mut total = 0;
    // A plus sign separates parts; before a letter it begins an attribute, as in "1g.10gb+me".
    let begins_attribute = |at: usize| text[at + 1..].starts_with(|c: char| c.is_ascii_alphabetic());
    let mut index = 0;
    let parts = text.split(|c: char| {
        let at = index;
        index += c.len_utf8();
        c == ',' || c == '\n' || (c == '+' && !begins_attribute(at))
    });
    for part in parts.map(str::trim).filter(|p| !p.is_empty()) {
        let (count, name) = match part.split_once(['x', '*']) {
            Some((count, name)) if count.trim().bytes().all(|b| b.is_ascii_digit()) => {
                (count.trim().parse().ok(), name.trim())
            }
            _ => (Some(1), part),
        };
        let count: u32 = count
            .filter(|n| (1..=MAX_INSTANCES).contains(n))
            .ok_or_else(|| GpuError::Invalid(format!("'{part}': the count must be from 1 to {MAX_INSTANCES}")))?;
        let is_id = !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit());
        let name = if is_id { name.to_owned() } else { name.parse::<ProfileName>()?.to_string() };
        *instances.entry(name).or_insert(0_u32) += count;
        total += count;
        if total > MAX_INSTANCES {
            return Err(GpuError::Invalid(format!("more than {MAX_INSTANCES} instances are given")));
        }
    }
    if instances.is_empty() {
        return Err(GpuError::Invalid("no MIG profile is given: expected for example 3x1g.10gb + 1x3g.40gb".into()));
    }
    Ok(instances)
}

/// Formats profiles with counts, such as `3x1g.10gb + 1x3g.40gb`.
pub fn show(instances: &BTreeMap<String, u32>) -> String {
    instances.iter().map(|(name, n)| format!("{n}x{name}")).collect::<Vec<_>>().join(" + ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_parsed_and_invalid_text_is_rejected() {
        let shown = |text: &str| show(&parse(text).unwrap());
        assert_eq!(shown("3x1g.10gb + 1x3g.40gb"), "3x1g.10gb + 1x3g.40gb");
        assert_eq!(shown("1g.10gb+me,1g.10gb, 2 x 1g.10gb"), "3x1g.10gb + 1x1g.10gb+me");
        assert_eq!(shown("2x1g.24gb+gfx+1x2g.48gb-me"), "2x1g.24gb+gfx + 1x2g.48gb-me");
        assert_eq!(shown("1g.24gb+me.all + 3x1c.3g.40gb + 3c.3g.40gb"), "3x1c.3g.40gb + 1x1g.24gb+me.all + 1x3g.40gb");
        assert_eq!(shown("19,19"), "2x19");
        for bad in [
            "",
            "0x1g.10gb",
            "9999999x1g.10gb",
            "100000x1g.10gb,1g.10gb",
            "60000x1g.10gb+60000x3g.40gb",
            "large",
            "1g",
            "1g.gb",
            "xx1g.10gb",
            "4c.3g.40gb",
            "0c.3g.40gb",
            "1g.10gb+me.",
            "1g.10gb+,me",
            "1g.10gb+me-me",
            "1c.2c.3g.40gb",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
