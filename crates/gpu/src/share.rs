//! Sharing GPUs among jobs: MIG, MPS and time slices compared for the jobs at hand, and the configuration each needs.
//!
//! | | memory | faults | compute |
//! |---|---|---|---|
//! | MIG | separate in hardware | separate | separate |
//! | MPS | limited by the driver | shared: a fatal fault ends all clients | limited by a share of threads |
//! | time slices | shared: any job can take all | shared | turns of a few milliseconds |
//!
//! Source: NVIDIA, "Multi-Process Service" (sections on memory limits, thread percentage, error containment) and
//! k8s-device-plugin's README (sharing).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::GpuError;
use crate::mig::{self, Geometry, Packing};

/// Clients that MPS serves on one GPU (Volta and later).
const MPS_CLIENTS: usize = 48;
/// Jobs that a file may ask for.
const MOST_JOBS: usize = 100_000;

/// How well a job must be kept from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// It may share everything.
    #[default]
    None,
    /// Its memory must be its own.
    Memory,
    /// Memory, faults and speed must be its own.
    Full,
}

/// A kind of job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Its name.
    pub name: String,
    /// How many of them.
    #[serde(default = "one")]
    pub count: usize,
    /// GiB of GPU memory each.
    pub memory_gib: f64,
    /// Share of a whole GPU's compute each needs while it works, from 0 to 1.
    #[serde(default)]
    pub compute: f64,
    /// Share of the time in which it works, from 0 to 1.
    #[serde(default = "always")]
    pub duty: f64,
    /// How well it must be kept from others.
    #[serde(default)]
    pub isolation: Isolation,
}

fn one() -> usize {
    1
}
fn always() -> f64 {
    1.0
}

/// A file of workloads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workloads {
    /// The kinds of jobs.
    pub workloads: Vec<Workload>,
}

impl Workloads {
    /// Reads a file's text.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] that says where it is wrong.
    pub fn parse(text: &str) -> Result<Self, GpuError> {
        let file: Self = serde_saphyr::from_str(text).map_err(|e| GpuError::Invalid(format!("the workloads: {e}")))?;
        let share = |x: f64| (0.0..=1.0).contains(&x);
        for w in &file.workloads {
            let why = match w {
                _ if !(w.memory_gib > 0.0 && w.memory_gib < 1e6) => "memory_gib must be more than 0",
                _ if !share(w.compute) => "compute must be from 0 to 1",
                _ if !share(w.duty) => "duty must be from 0 to 1",
                _ if w.count == 0 => "count must be at least 1",
                _ => continue,
            };
            return Err(GpuError::Invalid(format!("workload '{}': {why}", w.name)));
        }
        let jobs = file.workloads.iter().fold(0usize, |n, w| n.saturating_add(w.count));
        if jobs == 0 || jobs > MOST_JOBS {
            return Err(GpuError::Invalid(format!(
                "the file asks for {jobs} jobs; from 1 to {MOST_JOBS} can be planned"
            )));
        }
        Ok(file)
    }

    /// Each job by itself: the index of its workload.
    fn jobs(&self) -> Vec<usize> {
        self.workloads.iter().enumerate().flat_map(|(i, w)| std::iter::repeat_n(i, w.count)).collect()
    }
}

/// A way to share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Instances in hardware.
    Mig,
    /// One server process a GPU.
    Mps,
    /// Turns.
    TimeSlicing,
}

impl Strategy {
    /// The name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mig => "mig",
            Self::Mps => "mps",
            Self::TimeSlicing => "time-slicing",
        }
    }
}

/// What a strategy comes to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The strategy.
    pub strategy: Strategy,
    /// Why it cannot serve the jobs, if it cannot.
    pub refused: Option<String>,
    /// GPUs it needs.
    pub gpus: usize,
    /// No packing of this kind needs fewer.
    pub lower_bound: usize,
    /// Jobs on the fullest GPU.
    pub most_jobs: usize,
    /// GiB that nobody can use.
    pub memory_lost_gib: f64,
    /// The speed of the slowest job when all work at once, as a share of what it asked for.
    pub worst_share: f64,
    /// The speed to expect with the duty given.
    pub expected_share: f64,
    /// What is kept apart, in words.
    pub isolation: &'static str,
    /// NVIDIA k8s-device-plugin's configuration.
    pub device_plugin: String,
    /// mig-parted's configuration, for MIG.
    pub mig_parted: Option<String>,
}

/// All strategies and the one to take.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The card that was planned for.
    pub card: String,
    /// Jobs in all.
    pub jobs: usize,
    /// The strategies.
    pub outcomes: Vec<Outcome>,
    /// The strategy to take, if one serves.
    pub recommended: Option<Strategy>,
    /// Why.
    pub reason: String,
    /// Instances of each GPU for MIG, for the picture.
    #[serde(skip)]
    pub packing: Option<Packing>,
}

/// Vector packing: first fit in order of size, by memory and by compute. GPUs with their jobs, and a bound.
fn pack(jobs: &[(f64, f64)], memory: f64, most: usize) -> (Vec<Vec<usize>>, usize) {
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    let size = |j: usize| (jobs[j].0 / memory).max(jobs[j].1);
    order.sort_by(|a, b| size(*b).total_cmp(&size(*a)));
    let mut gpus: Vec<(f64, f64, Vec<usize>)> = Vec::new();
    // GPUs before this one are full for every job that is still to come.
    let mut first_open = 0;
    let smallest = jobs.iter().map(|j| j.0).fold(f64::INFINITY, f64::min);
    for job in order {
        let (m, c) = jobs[job];
        while gpus.get(first_open).is_some_and(|g| g.0 + smallest > memory || g.2.len() >= most) {
            first_open += 1;
        }
        let fits = |g: &(f64, f64, Vec<usize>)| g.0 + m <= memory + 1e-9 && g.1 + c <= 1.0 + 1e-9 && g.2.len() < most;
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
    let by = |x: f64| (x - 1e-9).ceil().max(0.0) as usize;
    let bound = by(total.0 / memory).max(by(total.1)).max(jobs.len().div_ceil(most));
    (gpus.into_iter().map(|g| g.2).collect(), bound)
}

fn gib(mib: u64) -> f64 {
    mib as f64 / 1024.0
}

/// Plans `workloads` on cards with so much memory, and with this MIG geometry if they have one.
///
/// # Errors
/// [`GpuError::Impossible`] when a job is larger than the card.
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
    // Fewest GPUs; among equals the better speed, then the better isolation (the order of the list).
    let best = possible.min_by(|a, b| a.gpus.cmp(&b.gpus).then(b.expected_share.total_cmp(&a.expected_share)));
    let reason = match (best, strictest) {
        (None, _) => "no way of sharing serves these jobs; give each a GPU of its own".to_owned(),
        (Some(o), Isolation::Full) if o.strategy == Strategy::Mig => {
            "a job must be kept from others in full, which only MIG does".into()
        }
        (Some(o), _) => format!("{} GPUs, the fewest of the ways that keep what must be kept apart", o.gpus),
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
        outcome.refused = Some(format!("{card} has no MIG"));
        return (outcome, None);
    };
    // The smallest profile that holds a job.
    let mut profiles = Vec::new();
    for w in &workloads.workloads {
        let holds = |p: &&mig::Profile| {
            !p.media()
                && gib(p.memory_mib) >= w.memory_gib
                && f64::from(p.compute) / f64::from(geometry.compute) + 1e-9 >= w.compute
        };
        match geometry.profiles.iter().filter(holds).min_by_key(|p| (p.size, p.compute)) {
            Some(profile) => profiles.push(profile),
            None => {
                outcome.refused = Some(format!("'{}' fits in no instance of {}", w.name, geometry.name));
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

/// GPUs with the same instances share a rule.
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

/// The speed of the slowest job if `shares` (compute, duty) run on one GPU: all at once, and with the duty given.
fn speed(shares: &[(f64, f64)]) -> (f64, f64) {
    let all: f64 = shares.iter().map(|s| s.0).sum();
    let usual: f64 = shares.iter().map(|s| s.0 * s.1).sum();
    (if all > 1.0 { 1.0 / all } else { 1.0 }, if usual > 1.0 { 1.0 / usual } else { 1.0 })
}

/// Jobs that share whole GPUs: by MPS, or in turns.
fn shared(strategy: Strategy, workloads: &Workloads, jobs: &[usize], memory: f64) -> Outcome {
    let (most, overcommit, kind, isolation) = match strategy {
        Strategy::TimeSlicing => (usize::MAX, true, "timeSlicing", "nothing"),
        _ => (MPS_CLIENTS, false, "mps", "memory by limit (CUDA_MPS_PINNED_DEVICE_MEM_LIMIT), threads by share"),
    };
    let one = |w: &usize| {
        let w = &workloads.workloads[*w];
        // Turns are taken only by those that work, so jobs that rest most of the time may share more than all of it.
        (w.memory_gib, if overcommit { w.compute * w.duty } else { w.compute })
    };
    let sizes: Vec<(f64, f64)> = jobs.iter().map(one).collect();
    let (gpus, bound) = pack(&sizes, memory, most);
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
    // The plugin gives each replica an equal part of memory and threads.
    let largest = workloads.workloads.iter().map(|w| w.memory_gib).fold(0.0, f64::max);
    let refused = if strictest == Isolation::Full {
        Some("a fatal fault of one client ends all of them".to_owned())
    } else if largest * most_jobs as f64 > memory {
        Some(format!(
            "the device plugin gives each of {most_jobs} replicas an equal part of the memory, and a job needs {largest} GiB"
        ))
    } else {
        None
    };
    Outcome { refused, ..outcome }
}

fn by_time(workloads: &Workloads, jobs: &[usize], memory: f64, strictest: Isolation) -> Outcome {
    let refused = (strictest > Isolation::None).then(|| "jobs share the memory: any can take all of it".to_owned());
    Outcome { refused, ..shared(Strategy::TimeSlicing, workloads, jobs, memory) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_of(text: &str) -> Plan {
        let geometry = Geometry::family("a100-80gb").unwrap();
        plan("A100", 81_920, Some(&geometry), &Workloads::parse(text).unwrap()).unwrap()
    }

    #[test]
    fn resting_notebooks_take_turns() {
        let plan = plan_of("workloads: [{name: notebook, count: 8, memory_gib: 8, compute: 0.5, duty: 0.2}]");
        assert_eq!(plan.recommended, Some(Strategy::TimeSlicing));
        let turns = &plan.outcomes[2];
        assert_eq!((turns.gpus, turns.lower_bound, turns.most_jobs), (1, 1, 8));
        assert!((turns.worst_share - 0.25).abs() < 1e-9 && (turns.expected_share - 1.0).abs() < 1e-9);
        assert!(turns.device_plugin.contains("replicas: 8"));
    }

    #[test]
    fn full_isolation_means_mig() {
        let plan = plan_of("workloads: [{name: tenant, count: 9, memory_gib: 9, compute: 0.1, isolation: full}]");
        assert_eq!(plan.recommended, Some(Strategy::Mig));
        assert_eq!((plan.outcomes[0].gpus, plan.outcomes[0].lower_bound), (2, 2));
        let file = plan.outcomes[0].mig_parted.clone().unwrap();
        assert!(mig::Config::parse(&file).is_ok(), "{file}");
        assert!(plan.outcomes[1].refused.is_some() && plan.outcomes[2].refused.is_some());
    }

    #[test]
    fn cards_without_mig_say_so() {
        let workloads = Workloads::parse("workloads: [{name: a, memory_gib: 4, isolation: full}]").unwrap();
        let plan = plan("T4", 15_360, None, &workloads).unwrap();
        assert_eq!((plan.recommended, plan.outcomes[0].refused.as_deref()), (None, Some("T4 has no MIG")));
    }

    #[test]
    fn mistakes_name_the_workload() {
        let wrong = |text: &str| Workloads::parse(text).unwrap_err().to_string();
        assert!(wrong("workloads: [{name: a, memory_gib: 0}]").contains("'a': memory_gib"));
        assert!(wrong("workloads: [{name: a, memory_gib: 1, compute: 2}]").contains("compute must be"));
        assert!(wrong("workloads: []").contains("0 jobs"));
        assert!(wrong("workloads: [{name: a, memory: 1}]").contains("memory"));
    }

    #[test]
    fn ten_thousand_jobs_pack_within_a_tenth_of_the_bound() {
        let jobs: Vec<(f64, f64)> =
            (0..10_000u32).map(|i| (f64::from(i * 7 % 23 + 2), f64::from(i * 5 % 11) / 40.0)).collect();
        let (gpus, bound) = pack(&jobs, 80.0, usize::MAX);
        assert_eq!(gpus.iter().map(Vec::len).sum::<usize>(), 10_000);
        assert!(gpus.len() * 10 <= bound * 11, "{} for {bound}", gpus.len());
    }
}
