//! Packs many instances onto as few GPUs as possible (the cutting-stock problem).
//!
//! A pattern is one way to fill a GPU; there are a few hundred. The linear program "cover the demand with the fewest
//! patterns" is solved by the revised simplex method. Its solution gives a lower bound on the number of GPUs (Farley 1990)
//! and, rounded down, nearly all GPUs; the remaining instances are placed by exact search. Source: Gilmore and Gomory, "A linear
//! programming approach to the cutting-stock problem" (1961).

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::geometry::{Geometry, Instance};
use super::solve::{Placed, Used, find_profile, place};
use crate::GpuError;
use crate::nvml::Placement;

/// Tolerance for rounding errors.
const EPSILON: f64 = 1e-7;
/// Maximum number of simplex iterations; a few dozen are normally enough.
const MAX_ITERATIONS: usize = 2_000;

/// One way to fill a GPU.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    /// Number of instances of each profile, in the geometry's order.
    pub(super) counts: Vec<u32>,
    instances: Vec<Instance>,
}

/// Every multiset of profiles that fits on one GPU, each with one placement.
pub(super) fn patterns(geometry: &Geometry) -> Vec<Pattern> {
    let mut seen: HashMap<(Used, Vec<u32>), ()> = HashMap::new();
    let mut found: BTreeMap<Vec<u32>, Vec<Instance>> = BTreeMap::new();
    let mut open = vec![(Used::default(), vec![0; geometry.profiles.len()], Vec::new())];
    while let Some((used, counts, instances)) = open.pop() {
        if seen.insert((used, counts.clone()), ()).is_some() {
            continue;
        }
        for (i, profile) in geometry.profiles.iter().enumerate() {
            for &start in &profile.starts {
                if let Some(after) = used.with(profile, start, geometry) {
                    let mut counts: Vec<u32> = counts.clone();
                    counts[i] += 1;
                    let mut instances: Vec<Instance> = instances.clone();
                    let at = Placement { start, size: profile.size };
                    instances.push(Instance::new(profile.name.clone(), at));
                    open.push((after, counts, instances));
                }
            }
        }
        found.entry(counts).or_insert(instances);
    }
    found.into_iter().map(|(counts, instances)| Pattern { counts, instances }).collect()
}

/// The result of [`pack`].
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Packing {
    /// The instances of each GPU, each with the index of its job.
    pub gpus: Vec<Vec<(usize, Instance)>>,
    /// Lower bound on the number of GPUs of any packing.
    pub lower_bound: usize,
}

/// Solves the linear program for the demand per profile. Returns patterns with their amounts, and the lower bound.
fn relax(patterns: &[Pattern], demand: &[f64]) -> (Vec<(usize, f64)>, usize) {
    let rows: Vec<usize> = (0..demand.len()).filter(|i| demand[*i] > 0.0).collect();
    let m = rows.len();
    let column = |p: usize| -> Vec<f64> { rows.iter().map(|r| f64::from(patterns[p].counts[*r])).collect() };
    // Only patterns without profiles that are not in demand can be used.
    let usable: Vec<usize> = (0..patterns.len())
        .filter(|p| patterns[*p].counts.iter().enumerate().all(|(i, n)| *n == 0 || demand[i] > 0.0))
        .collect();
    // The initial basis: for each profile the pattern with the most instances of this profile alone.
    let single_profile = |row: usize| {
        let only = |p: &&usize| patterns[**p].counts.iter().enumerate().all(|(i, n)| (*n > 0) == (i == rows[row]));
        usable.iter().filter(only).max_by_key(|p| patterns[**p].counts[rows[row]]).copied()
    };
    let Some(mut basis) = (0..m).map(single_profile).collect::<Option<Vec<usize>>>() else { return (Vec::new(), 0) };
    let mut inverse = vec![vec![0.0; m]; m];
    for i in 0..m {
        inverse[i][i] = 1.0 / f64::from(patterns[basis[i]].counts[rows[i]]);
    }
    let mut amounts: Vec<f64> = (0..m).map(|i| demand[rows[i]] * inverse[i][i]).collect();
    let mut bound = 0.0f64;
    for _ in 0..MAX_ITERATIONS {
        let prices: Vec<f64> = (0..m).map(|j| inverse.iter().map(|row| row[j]).sum()).collect();
        let value = |p: usize| column(p).iter().zip(&prices).map(|(a, y)| a * y).sum::<f64>();
        let Some((enter, best)) = usable.iter().map(|p| (*p, value(*p))).max_by(|a, b| a.1.total_cmp(&b.1)) else {
            break;
        };
        bound = bound.max(amounts.iter().sum::<f64>() / best.max(1.0));
        if best <= 1.0 + EPSILON {
            break;
        }
        let a = column(enter);
        let direction: Vec<f64> = inverse.iter().map(|row| row.iter().zip(&a).map(|(b, x)| b * x).sum()).collect();
        let ratios = (0..m).filter(|i| direction[*i] > EPSILON).map(|i| (i, amounts[i] / direction[i]));
        let Some((leave, step)) = ratios.min_by(|a, b| a.1.total_cmp(&b.1)) else { break };
        let pivot = direction[leave];
        let pivot_row: Vec<f64> = inverse[leave].iter().map(|v| v / pivot).collect();
        for i in 0..m {
            if i != leave {
                amounts[i] -= step * direction[i];
                for j in 0..m {
                    inverse[i][j] -= direction[i] * pivot_row[j];
                }
            }
        }
        inverse[leave] = pivot_row;
        amounts[leave] = step;
        basis[leave] = enter;
    }
    (basis.into_iter().zip(amounts).collect(), (bound - EPSILON).ceil().max(0.0) as usize)
}

/// Packs one instance per job onto as few GPUs as possible. `jobs` are profile names.
///
/// # Errors
/// [`GpuError::Invalid`] for a profile that the card lacks, [`GpuError::Impossible`] if more than `max_gpus` are needed.
pub fn pack(geometry: &Geometry, jobs: &[&str], max_gpus: usize) -> Result<Packing, GpuError> {
    let mut waiting: BTreeMap<&str, VecDeque<usize>> = BTreeMap::new();
    for (job, name) in jobs.iter().enumerate() {
        waiting.entry(find_profile(geometry, name)?.name.as_str()).or_default().push_back(job);
    }
    let patterns = patterns(geometry);
    let demand: Vec<f64> =
        geometry.profiles.iter().map(|p| waiting.get(p.name.as_str()).map_or(0.0, |w| w.len() as f64)).collect();
    let (amounts, lower_bound) = relax(&patterns, &demand);

    let mut gpus: Vec<Vec<(usize, Instance)>> = Vec::new();
    let mut fill = |instances: &[Instance], waiting: &mut BTreeMap<&str, VecDeque<usize>>| {
        let take = |i: &Instance| Some((waiting.get_mut(i.profile.as_str())?.pop_front()?, i.clone()));
        let taken: Vec<_> = instances.iter().filter_map(take).collect();
        if !taken.is_empty() {
            gpus.push(taken);
        }
    };
    for (pattern, amount) in amounts {
        for _ in 0..(amount + EPSILON).floor().max(0.0) as usize {
            fill(&patterns[pattern].instances, &mut waiting);
        }
    }
    // Rounding down leaves at most one GPU per profile, which is few enough for an exact search.
    let rest: BTreeMap<String, u32> = waiting
        .iter()
        .filter(|(_, w)| !w.is_empty())
        .map(|(name, w)| ((*name).to_owned(), u32::try_from(w.len()).unwrap_or(u32::MAX)))
        .collect();
    if !rest.is_empty() {
        let counts: Vec<f64> =
            geometry.profiles.iter().map(|p| f64::from(rest.get(&p.name).copied().unwrap_or(0))).collect();
        for n in relax(&patterns, &counts).1.max(1).. {
            if let Placed::Yes(placed) = place(geometry, &vec![Used::default(); n], &rest)? {
                placed.iter().for_each(|instances| fill(instances, &mut waiting));
                break;
            }
        }
    }
    if gpus.len() > max_gpus {
        return Err(GpuError::Impossible(format!(
            "{} jobs need {} GPUs and {max_gpus} are available; no packing needs fewer than {lower_bound}",
            jobs.len(),
            gpus.len()
        )));
    }
    Ok(Packing { gpus, lower_bound })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn packing_10_000_jobs_needs_at_most_one_gpu_above_lower_bound() {
        let geometry = Geometry::family("h100").unwrap();
        let names: Vec<&str> =
            (0..10_000).map(|i| ["1g.10gb", "1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb"][i % 5]).collect();
        let packing = pack(&geometry, &names, 10_000).unwrap();
        let used = packing.gpus.len();
        assert!(used <= packing.lower_bound + 1, "{used} for a bound of {}", packing.lower_bound);
        assert!(pack(&geometry, &names, used - 1).unwrap_err().to_string().contains("no packing needs fewer"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        /// A packing is valid, and needs at most one GPU more than an exact search over all jobs.
        #[test]
        fn packing_is_valid_and_near_optimal(picks in prop::collection::vec(0usize..7, 1..14)) {
            let geometry = Geometry::family("a100-80gb").unwrap();
            let names: Vec<&str> = picks.iter().map(|i| geometry.profiles[*i].name.as_str()).collect();
            let packing = pack(&geometry, &names, 100).unwrap();
            let mut jobs: Vec<usize> = packing.gpus.iter().flatten().map(|(job, _)| *job).collect();
            jobs.sort_unstable();
            prop_assert_eq!(jobs, (0..names.len()).collect::<Vec<_>>());
            for gpu in &packing.gpus {
                for (job, instance) in gpu {
                    prop_assert_eq!(&instance.profile, names[*job]);
                }
                let instances: Vec<Instance> = gpu.iter().map(|(_, i)| i.clone()).collect();
                prop_assert!(Used::from_instances(&instances, &geometry).is_ok());
            }
            let mut map = BTreeMap::new();
            for name in &names {
                *map.entry((*name).to_owned()).or_insert(0) += 1;
            }
            let exact = (1..).find(|n| {
                matches!(place(&geometry, &vec![Used::default(); *n], &map).unwrap(), Placed::Yes(_))
            }).unwrap();
            prop_assert!(packing.lower_bound <= exact, "bound {} for {exact}", packing.lower_bound);
            prop_assert!(packing.gpus.len() <= exact + 1, "{} for {exact}", packing.gpus.len());
        }
    }
}
