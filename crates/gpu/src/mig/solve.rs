//! Where instances go: exact placement on one GPU and over several, and packing of many.
//!
//! A GPU is a mask of memory slices and the compute slices and media engines in use. Placing is a search over
//! starts with the largest profiles first; states that were seen to fail are not tried again.

use std::collections::{BTreeMap, HashSet};

use super::geometry::{Geometry, Instance, Profile};
use crate::GpuError;
use crate::nvml::Placement;

/// Search steps after which the exact solver gives up and says so.
const STEPS: usize = 2_000_000;

/// What is used of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Used {
    /// A bit for each memory slice.
    slices: u16,
    compute: u8,
    media: bool,
}

impl Used {
    pub(super) fn with(self, profile: &Profile, start: u32, geometry: &Geometry) -> Option<Self> {
        let mask = ((1u16 << profile.size) - 1) << start;
        let compute = self.compute + u8::try_from(profile.compute).ok()?;
        let free =
            self.slices & mask == 0 && u32::from(compute) <= geometry.compute && !(self.media && profile.media());
        free.then_some(Self { slices: self.slices | mask, compute, media: self.media || profile.media() })
    }

    /// A GPU with these instances.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] when they overlap or a profile is unknown.
    pub fn of(instances: &[Instance], geometry: &Geometry) -> Result<Self, GpuError> {
        instances.iter().try_fold(Self::default(), |used, instance| {
            let profile = known(geometry, &instance.profile)?;
            used.with(profile, instance.at.start, geometry)
                .ok_or_else(|| GpuError::Invalid(format!("{} does not fit where it is said to be", instance.profile)))
        })
    }

    fn places<'p>(self, profile: &'p Profile, geometry: &'p Geometry) -> impl Iterator<Item = (u32, Self)> + 'p {
        profile.starts.iter().filter_map(move |&start| self.with(profile, start, geometry).map(|used| (start, used)))
    }

    /// How many placements of any profile are still possible: the more the better.
    fn freedom(self, geometry: &Geometry) -> u32 {
        let one = |p: &Profile| p.compute * u32::try_from(self.places(p, geometry).count()).unwrap_or(0);
        geometry.profiles.iter().map(one).sum()
    }

    /// Free memory slices.
    fn free(self, geometry: &Geometry) -> u32 {
        geometry.memory - self.slices.count_ones()
    }
}

/// The profile of that name.
///
/// # Errors
/// [`GpuError::Invalid`] with the names there are.
pub fn known<'g>(geometry: &'g Geometry, name: &str) -> Result<&'g Profile, GpuError> {
    geometry.profile(name).ok_or_else(|| {
        GpuError::Invalid(format!("{} has no profile '{name}'; it has {}", geometry.name, geometry.names()))
    })
}

/// Profiles and how many of each, such as `3x1g.10gb + 1x3g.40gb`, `1g.10gb,3g.40gb` or `7*1g.10gb`.
///
/// # Errors
/// [`GpuError::Invalid`] that quotes what is not understood.
pub fn parse(text: &str) -> Result<BTreeMap<String, u32>, GpuError> {
    let mut wanted = BTreeMap::new();
    // A plus may also begin a suffix: "1g.10gb+me".
    let text = text.replace("+me", "\u{1}me").replace(['+', ','], "\n").replace('\u{1}', "+");
    for part in text.lines().map(str::trim).filter(|p| !p.is_empty()) {
        let (count, name) = match part.split_once(['x', '*']) {
            Some((count, name)) if count.trim().bytes().all(|b| b.is_ascii_digit()) => {
                (count.trim().parse().ok(), name.trim())
            }
            _ => (Some(1), part),
        };
        let count: u32 = count
            .filter(|n| (1..=100_000).contains(n))
            .ok_or_else(|| GpuError::Invalid(format!("'{part}': the count must be from 1 to 100000")))?;
        let (slices, memory) = name.split_once("g.").unwrap_or_default();
        let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
        if !digits(slices) || !memory.split_once("gb").is_some_and(|(gb, _)| digits(gb)) {
            return Err(GpuError::Invalid(format!(
                "'{part}' is no MIG profile; they look like 3x1g.10gb or 1g.10gb+me"
            )));
        }
        *wanted.entry(name.to_owned()).or_insert(0) += count;
    }
    if wanted.is_empty() {
        return Err(GpuError::Invalid("no MIG profile is named; write for example 3x1g.10gb + 1x3g.40gb".into()));
    }
    Ok(wanted)
}

/// The profiles one by one, the largest first.
fn items<'g>(wanted: &BTreeMap<String, u32>, geometry: &'g Geometry) -> Result<Vec<&'g Profile>, GpuError> {
    let mut items = Vec::new();
    for (name, count) in wanted {
        items.extend(std::iter::repeat_n(known(geometry, name)?, *count as usize));
    }
    items.sort_by_key(|p| std::cmp::Reverse((p.size, p.compute, p.media(), p.id)));
    Ok(items)
}

struct Search<'g> {
    geometry: &'g Geometry,
    items: Vec<&'g Profile>,
    failed: HashSet<(usize, Vec<Used>)>,
    steps: usize,
}

impl Search<'_> {
    /// Places items from `next` on; `None` when there is no way.
    fn run(&mut self, next: usize, gpus: &mut Vec<Used>, found: &mut Vec<(usize, Instance)>) -> bool {
        let Some(&profile) = self.items.get(next) else { return true };
        self.steps += 1;
        if self.steps > STEPS {
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
        // GPUs in the same state are the same choice.
        let mut tried = HashSet::new();
        let mut choices: Vec<(u32, u32, usize, u32, Used)> = Vec::new();
        for (gpu, used) in gpus.iter().enumerate() {
            if tried.insert(*used) {
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
            found.push((gpu, Instance { profile: profile.name.clone(), at }));
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

/// What the solver found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placed {
    /// New instances for each GPU.
    Yes(Vec<Vec<Instance>>),
    /// Proven: there is no way.
    No,
    /// Not found in the steps allowed.
    Unknown,
}

/// Places all that is wanted on GPUs, some of which may hold instances already. Exact.
///
/// # Errors
/// [`GpuError::Invalid`] for a profile the card lacks.
pub fn place(geometry: &Geometry, gpus: &[Used], wanted: &BTreeMap<String, u32>) -> Result<Placed, GpuError> {
    let items = items(wanted, geometry)?;
    let mut search = Search { geometry, items, failed: HashSet::new(), steps: 0 };
    let mut found = Vec::new();
    let done = search.run(0, &mut gpus.to_vec(), &mut found);
    if !done {
        return Ok(if search.steps > STEPS { Placed::Unknown } else { Placed::No });
    }
    let mut by_gpu = vec![Vec::new(); gpus.len()];
    for (gpu, instance) in found {
        by_gpu[gpu].push(instance);
    }
    by_gpu.iter_mut().for_each(|list| list.sort_by_key(|i| i.at.start));
    Ok(Placed::Yes(by_gpu))
}

/// Why something cannot be placed, and the nearest that can.
///
/// # Errors
/// [`GpuError::Invalid`] for a profile the card lacks.
pub fn explain(geometry: &Geometry, gpus: &[Used], wanted: &BTreeMap<String, u32>) -> Result<String, GpuError> {
    let items = items(wanted, geometry)?;
    let count = gpus.len();
    let (size, compute): (u32, u32) = items.iter().fold((0, 0), |(s, c), p| (s + p.size, c + p.compute));
    let free: u32 = gpus.iter().map(|g| g.free(geometry)).sum();
    let free_compute: u32 = gpus.iter().map(|g| geometry.compute - u32::from(g.compute)).sum();
    let mut reasons = Vec::new();
    if size > free {
        reasons.push(format!("it needs {size} memory slices and {free} are free"));
    }
    if compute > free_compute {
        reasons.push(format!("it needs {compute} compute slices and {free_compute} are free"));
    }
    let media = items.iter().filter(|p| p.media()).count();
    if media > count {
        reasons.push(format!("it wants {media} instances with media engines and each GPU has one share of them"));
    }
    for (name, n) in wanted {
        let profile = known(geometry, name)?;
        let places: usize = gpus.iter().map(|g| g.places(profile, geometry).count()).sum();
        let most = (profile.limit as usize * count).min(places);
        if *n as usize > most && reasons.is_empty() {
            let starts = profile.starts.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
            reasons.push(format!("{name} can only start at slice {starts}, so at most {most} fit"));
        }
    }
    if reasons.is_empty() {
        let one = |p: &&Profile| format!("{} at {:?}", p.name, p.starts);
        let mut kinds: Vec<String> = items.iter().map(one).collect();
        kinds.dedup();
        reasons.push(format!("the starts that NVIDIA allows do not leave room for all of them ({})", kinds.join("; ")));
    }
    let nearest = nearest(geometry, gpus, wanted)?;
    let shown = if nearest.is_empty() { "nothing".to_owned() } else { show(&nearest) };
    Ok(format!("{}; the nearest that fits is {shown}", reasons.join(", and ")))
}

/// The most of what is wanted that can be placed: the smallest instances are given up first.
fn nearest(
    geometry: &Geometry,
    gpus: &[Used],
    wanted: &BTreeMap<String, u32>,
) -> Result<BTreeMap<String, u32>, GpuError> {
    let mut kept: BTreeMap<String, u32> = BTreeMap::new();
    for profile in items(wanted, geometry)? {
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

/// `3x1g.10gb + 1x3g.40gb`.
pub fn show(wanted: &BTreeMap<String, u32>) -> String {
    wanted.iter().map(|(name, n)| format!("{n}x{name}")).collect::<Vec<_>>().join(" + ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(text: &str) -> BTreeMap<String, u32> {
        parse(text).unwrap()
    }

    #[test]
    fn every_layout_of_the_cards_is_found_and_no_other() {
        for family in ["a100-80gb", "h100-80gb", "a30-24gb"] {
            let geometry = Geometry::family(family).unwrap();
            let possible = super::super::pack::patterns(&geometry);
            let possible: HashSet<Vec<u32>> = possible.into_iter().map(|p| p.counts).collect();
            let limits: Vec<u32> = geometry.profiles.iter().map(|p| p.limit).collect();
            let mut counts = vec![0; limits.len()];
            let (mut asked, mut yes) = (0, 0);
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
                asked += 1;
                yes += u32::from(found);
                let Some(i) = (0..counts.len()).find(|i| counts[*i] < limits[*i]) else { break };
                counts[i] += 1;
                counts[..i].fill(0);
            }
            assert!(asked > 100 && yes == u32::try_from(possible.len()).unwrap(), "{family}: {yes} of {asked}");
        }
    }

    #[test]
    fn text_is_read_and_mistakes_are_quoted() {
        assert_eq!(show(&wanted("3x1g.10gb + 1x3g.40gb")), "3x1g.10gb + 1x3g.40gb");
        assert_eq!(show(&wanted("1g.10gb+me,1g.10gb, 2 x 1g.10gb")), "3x1g.10gb + 1x1g.10gb+me");
        for bad in ["", "0x1g.10gb", "9999999x1g.10gb", "large", "1g", "1g.gb", "xx1g.10gb"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn impossible_ones_are_explained() {
        let geometry = Geometry::family("h100").unwrap();
        let one = [Used::default()];
        let why = |text: &str| explain(&geometry, &one, &wanted(text)).unwrap();
        let two = explain(&geometry, &[Used::default(); 2], &wanted("3x4g.40gb")).unwrap();
        assert!(two.contains("4g.40gb can only start at slice 0, so at most 2 fit"), "{two}");
        assert!(why("8x1g.10gb").contains("needs 8 compute slices and 7 are free"));
        assert!(why("2x1g.10gb+me").contains("media engines"));
        assert!(why("2x3g.40gb + 1x1g.10gb").ends_with("the nearest that fits is 2x3g.40gb"));
        assert!(explain(&geometry, &one, &wanted("1g.5gb")).unwrap_err().to_string().contains("it has 7g.80gb"));
    }
}
