//! Exact placement of instances on one or several GPUs.
//!
//! The state of a GPU is a mask of its used memory slices plus its used compute slices and media engines. Placement is a
//! backtracking search over the start slices, largest profiles first; states that failed once are not searched again.

use std::collections::{BTreeMap, HashSet};

use super::geometry::{Geometry, Instance, Profile};
use super::name::show;
use crate::GpuError;
use crate::nvml::Placement;

/// Maximum number of search steps; beyond it the result is [`Placed::Unknown`].
const MAX_STEPS: usize = 2_000_000;

/// The used slices and media engines of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Used {
    /// One bit per memory slice.
    slices: u16,
    compute: u8,
    /// Decoders, encoders, JPEG engines and optical flow accelerators.
    media: [u8; 4],
}

impl Used {
    /// This state plus one instance at `start`; `None` if it does not fit.
    pub(super) fn with(self, profile: &Profile, start: u32, geometry: &Geometry) -> Option<Self> {
        let mask = ((1u16 << profile.size) - 1) << start;
        let compute = self.compute + u8::try_from(profile.compute).ok()?;
        let (all, mine) = (geometry.media, profile.engines.media());
        let media: [u8; 4] = std::array::from_fn(|i| self.media[i].saturating_add(mine[i].min(255) as u8));
        let enough = (0..4).all(|i| u32::from(media[i]) <= all[i]);
        let free = self.slices & mask == 0 && u32::from(compute) <= geometry.compute && enough;
        free.then_some(Self { slices: self.slices | mask, compute, media })
    }

    /// The state of a GPU with these instances.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] if instances overlap or a profile is unknown.
    pub fn from_instances(instances: &[Instance], geometry: &Geometry) -> Result<Self, GpuError> {
        instances.iter().try_fold(Self::default(), |used, instance| {
            let profile = find_profile(geometry, &instance.profile)?;
            used.with(profile, instance.at.start, geometry)
                .ok_or_else(|| GpuError::Invalid(format!("{} does not fit at its given position", instance.profile)))
        })
    }

    /// The possible start slices of a profile, each with the resulting state.
    fn places<'p>(self, profile: &'p Profile, geometry: &'p Geometry) -> impl Iterator<Item = (u32, Self)> + 'p {
        profile.starts.iter().filter_map(move |&start| self.with(profile, start, geometry).map(|used| (start, used)))
    }

    /// Number of placements that are still possible, weighted by compute slices. The search prefers high values.
    fn freedom(self, geometry: &Geometry) -> u32 {
        let weight = |p: &Profile| p.compute * u32::try_from(self.places(p, geometry).count()).unwrap_or(0);
        geometry.profiles.iter().map(weight).sum()
    }

    /// Number of free memory slices.
    fn free(self, geometry: &Geometry) -> u32 {
        geometry.memory - self.slices.count_ones()
    }
}

/// Finds a profile by name.
///
/// # Errors
/// [`GpuError::Invalid`] with the existing names if the card has no such profile.
pub fn find_profile<'g>(geometry: &'g Geometry, name: &str) -> Result<&'g Profile, GpuError> {
    geometry.profile(name).ok_or_else(|| {
        GpuError::Invalid(format!("{} has no profile '{name}'; it has {}", geometry.name, geometry.names()))
    })
}

/// One entry per desired instance, largest profile first.
fn items<'g>(desired: &BTreeMap<String, u32>, geometry: &'g Geometry) -> Result<Vec<&'g Profile>, GpuError> {
    let mut items = Vec::new();
    for (name, count) in desired {
        items.extend(std::iter::repeat_n(find_profile(geometry, name)?, *count as usize));
    }
    items.sort_by_key(|p| std::cmp::Reverse((p.size, p.compute, p.media(), p.id)));
    Ok(items)
}

/// A backtracking search for a placement of `items`.
struct Search<'g> {
    geometry: &'g Geometry,
    items: Vec<&'g Profile>,
    /// Next item and sorted GPU states from which no placement exists.
    failed: HashSet<(usize, Vec<Used>)>,
    steps: usize,
}

impl Search<'_> {
    /// Places the items from index `next` on; `false` if there is no placement or the step limit is reached.
    fn run(&mut self, next: usize, gpus: &mut Vec<Used>, found: &mut Vec<(usize, Instance)>) -> bool {
        let Some(&profile) = self.items.get(next) else { return true };
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return false;
        }
        let need: u32 = self.items[next..].iter().map(|p| p.size).sum();
        if gpus.iter().map(|g| g.free(self.geometry)).sum::<u32>() < need {
            return false;
        }
        let mut key = gpus.clone();
        key.sort_unstable();
        if self.failed.contains(&(next, key.clone())) {
            return false;
        }
        // GPUs in the same state are equivalent choices.
        let mut seen = HashSet::new();
        let mut choices: Vec<(u32, u32, usize, u32, Used)> = Vec::new();
        for (gpu, used) in gpus.iter().enumerate() {
            if seen.insert(*used) {
                for (start, after) in used.places(profile, self.geometry) {
                    choices.push((
                        after.free(self.geometry),
                        u32::MAX - after.freedom(self.geometry),
                        gpu,
                        start,
                        after,
                    ));
                }
            }
        }
        choices.sort_unstable();
        for (_, _, gpu, start, after) in choices {
            let before = std::mem::replace(&mut gpus[gpu], after);
            let at = Placement { start, size: profile.size };
            found.push((gpu, Instance::new(profile.name.clone(), at)));
            if self.run(next + 1, gpus, found) {
                return true;
            }
            found.pop();
            gpus[gpu] = before;
        }
        self.failed.insert((next, key));
        false
    }
}

/// The result of [`place`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placed {
    /// The new instances of each GPU.
    Yes(Vec<Vec<Instance>>),
    /// No placement exists.
    No,
    /// No placement was found within the step limit.
    Unknown,
}

/// Places all desired instances on GPUs, which may already hold other instances. The search is exact.
///
/// # Errors
/// [`GpuError::Invalid`] for a profile that the card lacks.
pub fn place(geometry: &Geometry, gpus: &[Used], desired: &BTreeMap<String, u32>) -> Result<Placed, GpuError> {
    let items = items(desired, geometry)?;
    let mut search = Search { geometry, items, failed: HashSet::new(), steps: 0 };
    let mut found = Vec::new();
    let complete = search.run(0, &mut gpus.to_vec(), &mut found);
    if !complete {
        return Ok(if search.steps > MAX_STEPS { Placed::Unknown } else { Placed::No });
    }
    let mut by_gpu = vec![Vec::new(); gpus.len()];
    for (gpu, instance) in found {
        by_gpu[gpu].push(instance);
    }
    by_gpu.iter_mut().for_each(|list| list.sort_by_key(|i| i.at.start));
    Ok(Placed::Yes(by_gpu))
}

/// Explains why the desired instances cannot be placed, and names the largest subset that can.
///
/// # Errors
/// [`GpuError::Invalid`] for a profile that the card lacks.
pub fn explain(geometry: &Geometry, gpus: &[Used], desired: &BTreeMap<String, u32>) -> Result<String, GpuError> {
    let items = items(desired, geometry)?;
    let count = gpus.len();
    let (size, compute): (u32, u32) = items.iter().fold((0, 0), |(s, c), p| (s + p.size, c + p.compute));
    let free: u32 = gpus.iter().map(|g| g.free(geometry)).sum();
    let free_compute: u32 = gpus.iter().map(|g| geometry.compute - u32::from(g.compute)).sum();
    let mut reasons = Vec::new();
    if size > free {
        reasons.push(format!("{size} memory slices are needed and {free} are free"));
    }
    if compute > free_compute {
        reasons.push(format!("{compute} compute slices are needed and {free_compute} are free"));
    }
    let media = items.iter().filter(|p| p.media()).count();
    if media > count {
        reasons.push(format!("{media} instances with media engines are requested and each GPU supports one"));
    }
    let all = geometry.media.map(|n| n as usize * count);
    let needed = items.iter().fold([0usize; 4], |sum, p| {
        let mine = p.engines.media();
        std::array::from_fn(|i| sum[i] + mine[i] as usize)
    });
    if media <= count && (0..4).any(|i| needed[i] > all[i]) {
        let without: Vec<&str> =
            geometry.profiles.iter().filter(|p| p.name.ends_with("-me")).map(|p| p.name.as_str()).collect();
        let hint = if without.is_empty() { String::new() } else { format!("; {} need none", without.join(", ")) };
        reasons.push(format!("more media engines are needed than the GPUs have{hint}"));
    }
    for (name, n) in desired {
        let profile = find_profile(geometry, name)?;
        let places: usize = gpus.iter().map(|g| g.places(profile, geometry).count()).sum();
        let max = (profile.limit as usize * count).min(places);
        if *n as usize > max && reasons.is_empty() {
            let starts = profile.starts.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
            reasons.push(format!("{name} can only start at slice {starts}, so at most {max} fit"));
        }
    }
    if reasons.is_empty() {
        let positions = |p: &&Profile| format!("{} at {:?}", p.name, p.starts);
        let mut kinds: Vec<String> = items.iter().map(positions).collect();
        kinds.dedup();
        reasons.push(format!("the start slices that NVIDIA allows cannot hold all of them ({})", kinds.join("; ")));
    }
    let nearest = nearest(geometry, gpus, desired)?;
    let shown = if nearest.is_empty() { "nothing".to_owned() } else { show(&nearest) };
    Ok(format!("{}; the closest layout that fits is {shown}", reasons.join(", and ")))
}

/// The largest subset of the desired instances that can be placed; the smallest instances are dropped first.
fn nearest(
    geometry: &Geometry,
    gpus: &[Used],
    desired: &BTreeMap<String, u32>,
) -> Result<BTreeMap<String, u32>, GpuError> {
    let mut kept: BTreeMap<String, u32> = BTreeMap::new();
    for profile in items(desired, geometry)? {
        *kept.entry(profile.name.clone()).or_insert(0) += 1;
        if !matches!(place(geometry, gpus, &kept)?, Placed::Yes(_)) {
            if let Some(n) = kept.get_mut(&profile.name) {
                *n -= 1;
            }
            kept.retain(|_, n| *n > 0);
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instances(text: &str) -> BTreeMap<String, u32> {
        super::super::parse(text).unwrap()
    }

    #[test]
    fn rtx_pro_cards_share_media_engines() {
        let geometry = Geometry::family("rtx-pro-6000").unwrap();
        let fits =
            |text: &str| matches!(place(&geometry, &[Used::default()], &instances(text)).unwrap(), Placed::Yes(_));
        for possible in [
            "4x1g.24gb",
            "2x2g.48gb",
            "1x4g.96gb",
            "4x1g.24gb+gfx",
            "2x1g.24gb + 1x2g.48gb",
            "1g.24gb+me + 3x1g.24gb",
            "1g.24gb+me.all + 3x1g.24gb-me",
            "2g.48gb+me.all + 1x2g.48gb-me",
        ] {
            assert!(fits(possible), "{possible}");
        }
        for impossible in ["5x1g.24gb", "2x1g.24gb+me", "1g.24gb+me.all + 1g.24gb", "3x2g.48gb"] {
            assert!(!fits(impossible), "{impossible}");
        }
    }

    #[test]
    fn place_accepts_exactly_the_possible_layouts() {
        for family in ["a100-80gb", "h100-80gb", "a30-24gb", "rtx-pro-5000-48gb"] {
            let geometry = Geometry::family(family).unwrap();
            let possible = super::super::pack::patterns(&geometry);
            let possible: HashSet<Vec<u32>> = possible.into_iter().map(|p| p.counts).collect();
            let limits: Vec<u32> = geometry.profiles.iter().map(|p| p.limit).collect();
            let mut counts = vec![0; limits.len()];
            let (mut total, mut placed) = (0, 0);
            loop {
                let map: BTreeMap<String, u32> = geometry
                    .profiles
                    .iter()
                    .zip(&counts)
                    .filter(|(_, n)| **n > 0)
                    .map(|(p, n)| (p.name.clone(), *n))
                    .collect();
                let found = matches!(place(&geometry, &[Used::default()], &map).unwrap(), Placed::Yes(_));
                assert_eq!(found, possible.contains(&counts), "{family}: {map:?}");
                total += 1;
                placed += u32::from(found);
                let Some(i) = (0..counts.len()).find(|i| counts[*i] < limits[*i]) else { break };
                counts[i] += 1;
                counts[..i].fill(0);
            }
            assert!(total > 100 && placed == u32::try_from(possible.len()).unwrap(), "{family}: {placed} of {total}");
        }
    }

    #[test]
    fn impossible_placements_are_explained() {
        let geometry = Geometry::family("h100").unwrap();
        let one = [Used::default()];
        let why = |text: &str| explain(&geometry, &one, &instances(text)).unwrap();
        let two = explain(&geometry, &[Used::default(); 2], &instances("3x4g.40gb")).unwrap();
        assert!(two.contains("4g.40gb can only start at slice 0, so at most 2 fit"), "{two}");
        assert!(why("8x1g.10gb").contains("8 compute slices are needed and 7 are free"));
        assert!(why("2x1g.10gb+me").contains("media engines"));
        let rtx = Geometry::family("rtx-pro-6000").unwrap();
        let all = explain(&rtx, &one, &instances("1x1g.24gb+me.all + 3x1g.24gb")).unwrap();
        assert!(all.contains("media engines") && all.contains("1g.24gb-me"), "{all}");
        assert!(why("2x3g.40gb + 1x1g.10gb").ends_with("the closest layout that fits is 2x3g.40gb"));
        assert!(explain(&geometry, &one, &instances("1g.5gb")).unwrap_err().to_string().contains("it has 7g.80gb"));
    }
}
