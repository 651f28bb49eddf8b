//! Compute instances: how the requested MIG devices are laid out inside GPU instances.
//!
//! A profile such as `1c.3g.40gb` is a compute instance with one of the three compute slices of a `3g.40gb`; its neighbours share
//! the memory of the GPU instance. Three of them fill one GPU instance, as mig-parted places them.

use std::collections::BTreeMap;

use super::geometry::{Geometry, Instance};
use super::name::ProfileName;
use super::solve::find_profile;
use crate::GpuError;

/// A GPU instance without its position: the profile, and the slices of its compute instances as in [`Instance::compute`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// Name of the GPU instance profile.
    pub profile: String,
    /// Slices of each compute instance; empty for the one that fills the GPU instance.
    pub compute: Vec<u32>,
}

/// The GPU instances that hold the requested MIG devices, by shape.
pub type Shapes = BTreeMap<Shape, u32>;

impl Instance {
    /// This instance without its position.
    pub fn shape(&self) -> Shape {
        Shape { profile: self.profile.clone(), compute: self.compute.clone() }
    }

    /// The profile, and the compute instances if they are not the usual one: `3g.40gb(1c+2c)`.
    pub fn label(&self) -> String {
        if self.compute.is_empty() {
            return self.profile.clone();
        }
        let compute: Vec<String> = self.compute.iter().map(|c| format!("{c}c")).collect();
        format!("{}({})", self.profile, compute.join("+"))
    }

    /// The profile names of the MIG devices in this instance, one per compute instance.
    pub fn devices(&self) -> Vec<String> {
        if self.compute.is_empty() {
            return vec![self.profile.clone()];
        }
        let name = |c: &u32| match self.profile.parse::<ProfileName>() {
            Ok(name) => ProfileName { compute: *c, ..name }.to_string(),
            Err(_) => format!("{c}c.{}", self.profile),
        };
        self.compute.iter().filter(|c| **c > 0).map(name).collect()
    }
}

/// The GPU instances for MIG devices that are requested by profile name or id, with counts.
///
/// # Errors
/// [`GpuError::Invalid`] with the existing names if the card has no such profile.
pub fn shapes(geometry: &Geometry, requested: &BTreeMap<String, u32>) -> Result<Shapes, GpuError> {
    let mut shapes = Shapes::new();
    let mut partial: BTreeMap<String, (u32, Vec<u32>)> = BTreeMap::new();
    for (name, count) in requested.iter().filter(|(_, count)| **count > 0) {
        let parsed: Option<ProfileName> = name.parse().ok();
        let gpu_instance = parsed.as_ref().map_or_else(|| name.clone(), ProfileName::gpu_instance);
        let profile = find_profile(geometry, &gpu_instance)?;
        match parsed.filter(|p| p.compute != p.slices) {
            None => *shapes.entry(Shape { profile: profile.name.clone(), compute: Vec::new() }).or_insert(0) += count,
            Some(p) => {
                let (_, slices) = partial.entry(gpu_instance).or_insert((profile.compute, Vec::new()));
                slices.extend(std::iter::repeat_n(p.compute, *count as usize));
            }
        }
    }
    for (profile, (capacity, mut slices)) in partial {
        // First fit, largest first: the sizes of compute instances are few, so this wastes no GPU instance.
        slices.sort_unstable_by_key(|c| std::cmp::Reverse(*c));
        let mut filled: Vec<Vec<u32>> = Vec::new();
        for c in slices {
            match filled.iter_mut().find(|g| g.iter().sum::<u32>() + c <= capacity) {
                Some(instance) => instance.push(c),
                None => filled.push(vec![c]),
            }
        }
        for compute in filled {
            *shapes.entry(Shape { profile: profile.clone(), compute }).or_insert(0) += 1;
        }
    }
    Ok(shapes)
}

/// The number of GPU instances of each profile, which is all that placement depends on.
pub fn profiles(shapes: &Shapes) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for (shape, n) in shapes.iter().filter(|(_, n)| **n > 0) {
        *counts.entry(shape.profile.clone()).or_insert(0) += n;
    }
    counts
}

/// Gives placed instances their compute instances; `remaining` holds those that are not given yet.
pub fn fill(instances: &mut [Instance], remaining: &mut Shapes) {
    for instance in instances {
        if let Some((shape, n)) = remaining.iter_mut().find(|(s, n)| **n > 0 && s.profile == instance.profile) {
            *n -= 1;
            instance.compute.clone_from(&shape.compute);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mig::parse;

    #[test]
    fn compute_instances_share_gpu_instances() {
        let geometry = Geometry::family("h100-80gb").unwrap();
        let laid_out = |text: &str| {
            let shapes = shapes(&geometry, &parse(text).unwrap()).unwrap();
            shapes.iter().map(|(s, n)| format!("{n}x{}{:?}", s.profile, s.compute)).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(laid_out("3x1c.3g.40gb"), "1x3g.40gb[1, 1, 1]");
        assert_eq!(laid_out("4x1c.3g.40gb + 3g.40gb"), "1x3g.40gb[] 1x3g.40gb[1] 1x3g.40gb[1, 1, 1]");
        assert_eq!(laid_out("1c.3g.40gb + 2c.3g.40gb + 3c.3g.40gb"), "1x3g.40gb[] 1x3g.40gb[2, 1]");
        assert_eq!(laid_out("19,19,9"), "2x1g.10gb[] 1x3g.40gb[]");
        assert!(shapes(&geometry, &parse("1c.3g.20gb").unwrap()).is_err());
    }
}
