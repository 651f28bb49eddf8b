//! The values of GPU settings as users write them: power limits, clocks, compute modes, and the GPUs that they are for. Files of settings
//! and `cluster.yaml` share these types, so what one of them accepts means the same in the other.

pub mod selector;

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};

pub use selector::Selector;

/// The label of a node that selects one of the node agent's files of settings.
pub const LABEL: &str = "slipway.dev/gpu-settings";
/// Name of [`MACHINE_FILE`].
pub const FILE_NAME: &str = "gpu-settings.yaml";
/// The file with the settings that `cluster.yaml` has for a machine, which the machine applies at boot and the node agent keeps applied.
pub const MACHINE_FILE: &str = "/var/lib/slipway/gpu-settings.yaml";

/// A range of clocks in MHz.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Clocks {
    /// Lowest clock.
    pub min: u32,
    /// Highest clock.
    pub max: u32,
}

impl fmt::Display for Clocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max { write!(f, "{} MHz", self.min) } else { write!(f, "{}-{} MHz", self.min, self.max) }
    }
}

/// Clocks to lock; `None` for `default`, which removes a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockRange(pub Option<Clocks>);

impl FromStr for ClockRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("'{text}' is not a range of clocks in MHz such as 1200-1410, 1410 or default");
        let text = text.trim();
        if text == "default" {
            return Ok(Self(None));
        }
        let text = text.strip_suffix("MHz").unwrap_or(text);
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        match (min.trim().parse(), max.trim().parse()) {
            (Ok(min), Ok(max)) if 0 < min && min <= max => Ok(Self(Some(Clocks { min, max }))),
            _ => Err(invalid()),
        }
    }
}

/// How many processes may use a GPU (`nvmlComputeMode_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ComputeMode {
    /// Any number.
    Default,
    /// One; MPS requires this mode.
    ExclusiveProcess,
    /// None.
    Prohibited,
}

impl ComputeMode {
    /// The names in the file, with their values.
    pub const NAMES: [(&'static str, Self); 3] =
        [("default", Self::Default), ("exclusive-process", Self::ExclusiveProcess), ("prohibited", Self::Prohibited)];

    /// NVML's number of the mode.
    pub fn number(self) -> u32 {
        match self {
            Self::Default => 0,
            Self::Prohibited => 2,
            Self::ExclusiveProcess => 3,
        }
    }

    /// The mode with this number in NVML.
    pub fn from_number(number: u32) -> Self {
        match number {
            2 => Self::Prohibited,
            // 1 was exclusive thread, which drivers treat as exclusive process since CUDA 8.
            1 | 3 => Self::ExclusiveProcess,
            _ => Self::Default,
        }
    }
}

impl FromStr for ComputeMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::NAMES.iter().find(|(name, _)| *name == text).map(|(_, mode)| *mode).ok_or_else(|| {
            let names: Vec<&str> = Self::NAMES.iter().map(|(name, _)| *name).collect();
            format!("'{text}' is not a compute mode; use {}", names.join(", "))
        })
    }
}

/// A desired power limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Power {
    /// In milliwatts.
    Milliwatts(u32),
    /// In percent of the card's default limit.
    Percent(f64),
    /// The card's default limit.
    Default,
}

impl FromStr for Power {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("'{text}' is not a power limit such as 350W, 80% or default");
        let text = text.trim();
        if text == "default" {
            return Ok(Self::Default);
        }
        let number = |digits: &str| match digits.trim().parse::<f64>() {
            Ok(number) if number.is_finite() && number > 0.0 && number < 1e6 => Ok(number),
            _ => Err(invalid()),
        };
        if let Some(percent) = text.strip_suffix('%') {
            return number(percent).map(Self::Percent);
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // positive and below 1e9
        number(text.strip_suffix(['W', 'w']).unwrap_or(text)).map(|watts| Self::Milliwatts((watts * 1000.0) as u32))
    }
}

/// A value with the text that it was parsed from. In YAML the text may be a number where it looks like one. Texts are compared, not values.
#[derive(Debug, Clone)]
pub struct Written<T> {
    text: String,
    /// The value.
    pub value: T,
}

impl<T> PartialEq for Written<T> {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl<T> Eq for Written<T> {}

impl<T: FromStr<Err = String>> FromStr for Written<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(|value| Self { text: text.to_owned(), value })
    }
}

impl<T> Serialize for Written<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// Reads one text or number, or with `list` also a list of them, which are joined with commas.
struct TextVisitor {
    expecting: &'static str,
    list: bool,
}

impl<'de> Visitor<'de> for TextVisitor {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<String, E> {
        Ok(value.to_owned())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<String, A::Error> {
        if !self.list {
            return Err(Error::invalid_type(serde::de::Unexpected::Seq, &self));
        }
        let mut parts: Vec<String> = Vec::new();
        while let Some(Text(part)) = list.next_element()? {
            parts.push(part);
        }
        if parts.is_empty() { Err(Error::custom("the list of GPUs is empty")) } else { Ok(parts.join(",")) }
    }
}

/// One text or number.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let visitor = TextVisitor { expecting: "a text or a number", list: false };
        deserializer.deserialize_any(visitor).map(Self)
    }
}

impl<'de, T: FromStr<Err = String>> Deserialize<'de> for Written<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Text::deserialize(deserializer)?.0.parse().map_err(Error::custom)
    }
}

/// The GPUs of an entry: one selection or a list of them.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(transparent)]
pub struct Gpus(pub Written<Selector>);

impl<'de> Deserialize<'de> for Gpus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expecting = "all, indices such as 0-3, a UUID, a product name, or a list of them";
        let text = deserializer.deserialize_any(TextVisitor { expecting, list: true })?;
        text.parse().map(Self).map_err(Error::custom)
    }
}
