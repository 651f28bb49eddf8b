//! Plans how jobs share GPUs: compares MIG, MPS and time slicing for a set of jobs, and writes the configuration of each.
//!
//! | strategy | memory | faults | compute |
//! |---|---|---|---|
//! | MIG | isolated in hardware | isolated | isolated |
//! | MPS | limited by the driver | shared: a fatal fault ends all clients | limited by thread percentage |
//! | time slicing | shared: any job can use all of it | shared | time slices of a few milliseconds |
//!
//! Source: NVIDIA, "Multi-Process Service" (sections on memory limits, thread percentage, error containment) and
//! k8s-device-plugin's README (sharing).

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::GpuError;
use crate::mig::{self, Geometry, Packing};

/// Maximum number of MPS clients per GPU (Volta and later).
const MAX_MPS_CLIENTS: usize = 48;
/// Maximum number of jobs in a workloads file.
const MAX_JOBS: usize = 100_000;

/// The isolation from other jobs that a job requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// The job may share everything.
    #[default]
    None,
    /// Other jobs must not be able to use its memory.
    Memory,
    /// Other jobs must not affect its memory, its speed, or fail it by a fault.
    Full,
}

/// A kind of job, and how many of them to place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Name for messages, such as `notebook`.
    pub name: String,
    /// Number of jobs of this kind, at least 1.
    #[serde(default = "one")]
    pub count: usize,
    /// GPU memory per job in GiB.
    pub memory_gib: f64,
    /// Share of a whole GPU's compute that each job needs while it is active, from 0 to 1.
    #[serde(default)]
    pub compute: f64,
    /// Share of the time in which the job is active, from 0 to 1.
    #[serde(default = "always")]
    pub duty: f64,
    /// The required isolation from other jobs.
    #[serde(default)]
    pub isolation: Isolation,
}

fn one() -> usize {
    1
}
fn always() -> f64 {
    1.0
}

/// The content of a workloads file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workloads {
    /// The kinds of jobs.
    pub workloads: Vec<Workload>,
}

impl Workloads {
    /// Parses and validates the YAML text of a workloads file.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] with the position or the workload that is invalid.
    pub fn parse(text: &str) -> Result<Self, GpuError> {
        // The parser's own limits are raised above MAX_JOBS, so that a longer file is refused by that number.
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! { max_nodes: 40 * MAX_JOBS, max_events: 80 * MAX_JOBS },
        };
        let file: Self = serde_saphyr::from_str_with_options(text, options)
            .map_err(|e| GpuError::Invalid(format!("the workloads: {e}")))?;
        let share = |x: f64| (0.0..=1.0).contains(&x);
        let mut names = HashSet::new();
        for w in &file.workloads {
            let reason = match w {
                _ if !(w.memory_gib > 0.0 && w.memory_gib < 1e6) => "memory_gib must be more than 0",
                _ if !share(w.compute) => "compute must be from 0 to 1",
                _ if !share(w.duty) => "duty must be from 0 to 1",
                _ if w.count == 0 => "count must be at least 1",
                _ if !names.insert(w.name.as_str()) => {
                    "the name is used twice; add up the counts, or choose another name"
                }
                _ => continue,
            };
            return Err(GpuError::Invalid(format!("workload '{}': {reason}", w.name)));
        }
        let jobs = file.workloads.iter().fold(0usize, |n, w| n.saturating_add(w.count));
        if jobs == 0 || jobs > MAX_JOBS {
            return Err(GpuError::Invalid(format!(
                "the file has {jobs} jobs; the number must be from 1 to {MAX_JOBS}"
            )));
        }
        Ok(file)
    }

    /// One entry per job: the index of its workload.
    fn jobs(&self) -> Vec<usize> {
        self.workloads.iter().enumerate().flat_map(|(i, w)| std::iter::repeat_n(i, w.count)).collect()
    }
}

/// A way to share GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// GPU instances isolated in hardware.
    Mig,
    /// CUDA's multi-process service: one server process per GPU.
    Mps,
    /// Jobs alternate on the whole GPU.
    TimeSlicing,
}

impl Strategy {
    /// The name used in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mig => "mig",
            Self::Mps => "mps",
            Self::TimeSlicing => "time-slicing",
        }
    }
}

/// The result of planning with one strategy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The strategy.
    pub strategy: Strategy,
    /// Why the strategy cannot run the jobs; `None` if it can.
    pub refused: Option<String>,
    /// Number of GPUs needed.
    pub gpus: usize,
    /// Lower bound on `gpus`: no packing needs fewer.
    pub lower_bound: usize,
    /// Largest number of jobs on one GPU.
    pub most_jobs: usize,
    /// Memory in GiB that no job can use.
    pub memory_lost_gib: f64,
    /// Speed of the slowest job when all jobs are active, as a share of the requested compute.
    pub worst_share: f64,
    /// Expected speed of the slowest job with the given duty, as a share of the requested compute.
    pub expected_share: f64,
    /// Description of what is isolated between jobs.
    pub isolation: &'static str,
    /// Configuration of NVIDIA's k8s-device-plugin (YAML).
    pub device_plugin: String,
    /// Configuration of mig-parted (YAML); only for MIG.
    pub mig_parted: Option<String>,
}

/// The outcome of every strategy, and the recommended one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Name of the card.
    pub card: String,
    /// Total number of jobs.
    pub jobs: usize,
    /// One outcome per strategy.
    pub outcomes: Vec<Outcome>,
    /// The recommended strategy; `None` if no strategy can run the jobs.
    pub recommended: Option<Strategy>,
    /// The reason for the recommendation.
    pub reason: String,
    /// MIG instances of each GPU, for drawing.
    #[serde(skip)]
    pub packing: Option<Packing>,
}

/// Vector packing by first-fit decreasing on (memory, compute), with at most `max_jobs` per GPU. Returns the jobs of each GPU and a
/// lower bound on the number of GPUs.
fn pack(jobs: &[(f64, f64)], memory: f64, max_jobs: usize) -> (Vec<Vec<usize>>, usize) {
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    let size = |j: usize| (jobs[j].0 / memory).max(jobs[j].1);
    order.sort_by(|a, b| size(*b).total_cmp(&size(*a)));
    let mut gpus: Vec<(f64, f64, Vec<usize>)> = Vec::new();
    // GPUs before this index have no capacity for even the smallest job.
    let mut first_open = 0;
    let smallest = jobs.iter().map(|j| j.0).fold(f64::INFINITY, f64::min);
    for job in order {
        let (m, c) = jobs[job];
        while gpus.get(first_open).is_some_and(|g| g.0 + smallest > memory || g.2.len() >= max_jobs) {
            first_open += 1;
        }
        let fits =
            |g: &(f64, f64, Vec<usize>)| g.0 + m <= memory + 1e-9 && g.1 + c <= 1.0 + 1e-9 && g.2.len() < max_jobs;
        match gpus[first_open..].iter_mut().find(|g| fits(g)) {
            Some(gpu) => {
                gpu.0 += m;
                gpu.1 += c;
                gpu.2.push(job);
            }
            None => gpus.push((m, c, vec![job])),
        }
    }
    let total = jobs.iter().fold((0.0, 0.0), |(m, c), j| (m + j.0, c + j.1));
    let ceiling = |x: f64| (x - 1e-9).ceil().max(0.0) as usize;
    let bound = ceiling(total.0 / memory).max(ceiling(total.1)).max(jobs.len().div_ceil(max_jobs));
    (gpus.into_iter().map(|g| g.2).collect(), bound)
}

fn gib(mib: u64) -> f64 {
    mib as f64 / 1024.0
}

/// Plans `workloads` on cards with `memory_mib` of memory; `geometry` is `None` for cards without MIG.
///
/// # Errors
/// [`GpuError::Impossible`] if a job needs more memory than the card has.
pub fn plan(card: &str, memory_mib: u64, geometry: Option<&Geometry>, workloads: &Workloads) -> Result<Plan, GpuError> {
    let memory = gib(memory_mib);
    if let Some(w) = workloads.workloads.iter().find(|w| w.memory_gib > memory) {
        return Err(GpuError::Impossible(format!(
            "'{}' needs {} GiB and {card} has {memory:.0}",
            w.name, w.memory_gib
        )));
    }
    let jobs = workloads.jobs();
    let strictest = workloads.workloads.iter().map(|w| w.isolation).max().unwrap_or_default();
    let (mig, packing) = by_mig(geometry, workloads, &jobs, card);
    let outcomes = vec![mig, by_mps(workloads, &jobs, memory, strictest), by_time(workloads, &jobs, memory, strictest)];
    let possible = outcomes.iter().filter(|o| o.refused.is_none());
    // Prefer fewer GPUs, then higher speed, then better isolation (the order of the list).
    let best = possible.min_by(|a, b| a.gpus.cmp(&b.gpus).then(b.expected_share.total_cmp(&a.expected_share)));
    let reason = match (best, strictest) {
        (None, _) => "no sharing strategy can run these jobs; give each job its own GPU".to_owned(),
        (Some(o), Isolation::Full) if o.strategy == Strategy::Mig => {
            "a job requires full isolation, which only MIG provides".into()
        }
        (Some(o), _) => format!("{} GPUs, the fewest of all strategies with the required isolation", o.gpus),
    };
    let recommended = best.map(|o| o.strategy);
    Ok(Plan { card: card.into(), jobs: jobs.len(), outcomes, recommended, reason, packing })
}

fn by_mig(
    geometry: Option<&Geometry>,
    workloads: &Workloads,
    jobs: &[usize],
    card: &str,
) -> (Outcome, Option<Packing>) {
    let mut outcome = Outcome {
        strategy: Strategy::Mig,
        refused: None,
        gpus: 0,
        lower_bound: 0,
        most_jobs: 0,
        memory_lost_gib: 0.0,
        worst_share: 1.0,
        expected_share: 1.0,
        isolation: "memory, faults and speed",
        device_plugin: "version: v1\nflags:\n  migStrategy: mixed\n".into(),
        mig_parted: None,
    };
    let Some(geometry) = geometry else {
        outcome.refused = Some(format!("{card} does not support MIG"));
        return (outcome, None);
    };
    // For each workload the smallest profile that can hold one of its jobs.
    let mut profiles = Vec::new();
    for w in &workloads.workloads {
        let holds = |p: &&mig::Profile| {
            p.is_plain()
                && gib(p.memory_mib) >= w.memory_gib
                && f64::from(p.compute) / f64::from(geometry.compute) + 1e-9 >= w.compute
        };
        match geometry.profiles.iter().filter(holds).min_by_key(|p| (p.size, p.compute)) {
            Some(profile) => profiles.push(profile),
            None => {
                outcome.refused = Some(format!("'{}' does not fit in any MIG instance of {}", w.name, geometry.name));
                return (outcome, None);
            }
        }
    }
    let names: Vec<&str> = jobs.iter().map(|w| profiles[*w].name.as_str()).collect();
    match mig::pack(geometry, &names, usize::MAX) {
        Ok(packing) => {
            outcome.gpus = packing.gpus.len();
            outcome.lower_bound = packing.lower_bound;
            outcome.most_jobs = packing.gpus.iter().map(Vec::len).max().unwrap_or(0);
            outcome.memory_lost_gib =
                jobs.iter().map(|w| gib(profiles[*w].memory_mib) - workloads.workloads[*w].memory_gib).sum();
            outcome.mig_parted = Some(mig_parted(&packing));
            (outcome, Some(packing))
        }
        Err(e) => {
            outcome.refused = Some(e.to_string());
            (outcome, None)
        }
    }
}

/// Writes a mig-parted configuration; GPUs with the same instances share one rule.
fn mig_parted(packing: &Packing) -> String {
    let mut rules: BTreeMap<BTreeMap<String, u32>, Vec<usize>> = BTreeMap::new();
    for (index, gpu) in packing.gpus.iter().enumerate() {
        let mut counts = BTreeMap::new();
        for (_, instance) in gpu {
            *counts.entry(instance.profile.clone()).or_insert(0) += 1;
        }
        rules.entry(counts).or_default().push(index);
    }
    let mut text = "version: v1\nmig-configs:\n  shared:\n".to_owned();
    for (counts, gpus) in rules {
        let gpus = gpus.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        text.push_str(&format!("    - devices: [{gpus}]\n      mig-enabled: true\n      mig-devices:\n"));
        for (profile, n) in counts {
            text.push_str(&format!("        \"{profile}\": {n}\n"));
        }
    }
    text
}

/// The speed of the slowest job if `shares` of (compute, duty) run on one GPU: with all jobs active, and with the given duty.
fn speed(shares: &[(f64, f64)]) -> (f64, f64) {
    let all: f64 = shares.iter().map(|s| s.0).sum();
    let usual: f64 = shares.iter().map(|s| s.0 * s.1).sum();
    (if all > 1.0 { 1.0 / all } else { 1.0 }, if usual > 1.0 { 1.0 / usual } else { 1.0 })
}

/// Packs jobs onto whole GPUs that are shared by MPS or time slicing.
fn shared(strategy: Strategy, workloads: &Workloads, jobs: &[usize], memory: f64) -> Outcome {
    let (max_jobs, overcommit, kind, isolation) = match strategy {
        Strategy::TimeSlicing => (usize::MAX, true, "timeSlicing", "nothing"),
        _ => (MAX_MPS_CLIENTS, false, "mps", "memory by limit (CUDA_MPS_PINNED_DEVICE_MEM_LIMIT), threads by share"),
    };
    let size = |w: &usize| {
        let w = &workloads.workloads[*w];
        // Idle jobs use no time slices, so with time slicing only the average compute must fit.
        (w.memory_gib, if overcommit { w.compute * w.duty } else { w.compute })
    };
    let sizes: Vec<(f64, f64)> = jobs.iter().map(size).collect();
    let (gpus, bound) = pack(&sizes, memory, max_jobs);
    let (mut worst, mut expected) = (1.0f64, 1.0f64);
    for gpu in &gpus {
        let shares: Vec<(f64, f64)> =
            gpu.iter().map(|j| &workloads.workloads[jobs[*j]]).map(|w| (w.compute, w.duty)).collect();
        let (w, e) = speed(&shares);
        worst = worst.min(w);
        expected = expected.min(e);
    }
    let most_jobs = gpus.iter().map(Vec::len).max().unwrap_or(0);
    Outcome {
        strategy,
        refused: None,
        gpus: gpus.len(),
        lower_bound: bound,
        most_jobs,
        memory_lost_gib: 0.0,
        worst_share: worst,
        expected_share: expected,
        isolation,
        device_plugin: replicas(kind, most_jobs.max(2)),
        mig_parted: None,
    }
}

fn replicas(kind: &str, n: usize) -> String {
    format!("version: v1\nsharing:\n  {kind}:\n    resources:\n      - name: nvidia.com/gpu\n        replicas: {n}\n")
}

fn by_mps(workloads: &Workloads, jobs: &[usize], memory: f64, strictest: Isolation) -> Outcome {
    let outcome = shared(Strategy::Mps, workloads, jobs, memory);
    let most_jobs = outcome.most_jobs;
    // The device plugin gives each replica an equal share of memory and threads.
    let largest = workloads.workloads.iter().map(|w| w.memory_gib).fold(0.0, f64::max);
    let refused = if strictest == Isolation::Full {
        Some("a fatal fault of one MPS client terminates all of them".to_owned())
    } else if largest * most_jobs as f64 > memory {
        Some(format!(
            "the device plugin gives each of {most_jobs} replicas an equal share of the memory, and a job needs {largest} GiB"
        ))
    } else {
        None
    };
    Outcome { refused, ..outcome }
}

fn by_time(workloads: &Workloads, jobs: &[usize], memory: f64, strictest: Isolation) -> Outcome {
    let refused = (strictest > Isolation::None).then(|| "jobs share the memory: any job can use all of it".to_owned());
    Outcome { refused, ..shared(Strategy::TimeSlicing, workloads, jobs, memory) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_for(text: &str) -> Plan {
        let geometry = Geometry::family("a100-80gb").unwrap();
        plan("A100", 81_920, Some(&geometry), &Workloads::parse(text).unwrap()).unwrap()
    }

    #[test]
    fn idle_notebooks_are_time_sliced() {
        let plan = plan_for("workloads: [{name: notebook, count: 8, memory_gib: 8, compute: 0.5, duty: 0.2}]");
        assert_eq!(plan.recommended, Some(Strategy::TimeSlicing));
        let time_slicing = &plan.outcomes[2];
        assert_eq!((time_slicing.gpus, time_slicing.lower_bound, time_slicing.most_jobs), (1, 1, 8));
        assert!((time_slicing.worst_share - 0.25).abs() < 1e-9 && (time_slicing.expected_share - 1.0).abs() < 1e-9);
        assert!(time_slicing.device_plugin.contains("replicas: 8"));
    }

    #[test]
    fn full_isolation_requires_mig() {
        let plan = plan_for("workloads: [{name: tenant, count: 9, memory_gib: 9, compute: 0.1, isolation: full}]");
        assert_eq!(plan.recommended, Some(Strategy::Mig));
        assert_eq!((plan.outcomes[0].gpus, plan.outcomes[0].lower_bound), (2, 2));
        let file = plan.outcomes[0].mig_parted.clone().unwrap();
        assert!(mig::Config::parse(&file).is_ok(), "{file}");
        assert!(plan.outcomes[1].refused.is_some() && plan.outcomes[2].refused.is_some());
    }

    #[test]
    fn rtx_pro_cards_are_divided_into_up_to_four() {
        let geometry = Geometry::family("RTX PRO 6000").unwrap();
        let card = |count: u32, memory_gib: u32| {
            let text = format!(
                "workloads: [{{name: a, count: {count}, memory_gib: {memory_gib}, compute: 0.1, isolation: full}}]"
            );
            plan("RTX PRO 6000", 97_887, Some(&geometry), &Workloads::parse(&text).unwrap()).unwrap()
        };
        for (count, memory_gib, profile) in [(4, 20, "1g.24gb"), (2, 40, "2g.48gb"), (1, 80, "4g.96gb")] {
            let plan = card(count, memory_gib);
            assert_eq!((plan.recommended, plan.outcomes[0].gpus), (Some(Strategy::Mig), 1), "{profile}");
            assert!(plan.outcomes[0].mig_parted.as_ref().unwrap().contains(profile), "{plan:?}");
            assert_eq!(card(count + 1, memory_gib).outcomes[0].gpus, 2, "{profile}");
        }
    }

    #[test]
    fn mig_is_refused_for_cards_without_mig() {
        let workloads = Workloads::parse("workloads: [{name: a, memory_gib: 4, isolation: full}]").unwrap();
        let plan = plan("T4", 15_360, None, &workloads).unwrap();
        assert_eq!((plan.recommended, plan.outcomes[0].refused.as_deref()), (None, Some("T4 does not support MIG")));
    }

    #[test]
    fn errors_name_the_invalid_workload() {
        let error = |text: &str| Workloads::parse(text).unwrap_err().to_string();
        assert!(error("workloads: [{name: a, memory_gib: 0}]").contains("'a': memory_gib"));
        assert!(error("workloads: [{name: a, memory_gib: 1, compute: 2}]").contains("compute must be"));
        assert!(error("workloads: []").contains("0 jobs"));
        assert!(
            error("workloads: [{name: a, memory_gib: 1}, {name: a, memory_gib: 2}]")
                .contains("'a': the name is used twice")
        );
        let many: String =
            (0..100_001).map(|i| format!("  - {{name: w{i}, memory_gib: 1, compute: 0.1, duty: 0.5}}\n")).collect();
        assert!(error(&format!("workloads:\n{many}")).contains("100001 jobs; the number must be from 1 to 100000"));
        assert!(error("workloads: [{name: a, memory: 1}]").contains("memory"));
    }

    #[test]
    fn packing_10_000_jobs_is_within_10_percent_of_lower_bound() {
        let jobs: Vec<(f64, f64)> =
            (0..10_000u32).map(|i| (f64::from(i * 7 % 23 + 2), f64::from(i * 5 % 11) / 40.0)).collect();
        let (gpus, bound) = pack(&jobs, 80.0, usize::MAX);
        assert_eq!(gpus.iter().map(Vec::len).sum::<usize>(), 10_000);
        assert!(gpus.len() * 10 <= bound * 11, "{} for {bound}", gpus.len());
    }
}
