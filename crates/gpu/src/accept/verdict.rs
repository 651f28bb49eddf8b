//! What a measurement means: checks from what was measured and sampled.

use super::accelerator::{AllReduce, Loaded, Need};
use super::check::{Check, Measured, Outcome};
use super::watch::Samples;
use crate::inventory::Gpu;
use crate::sheet::Card;

/// The check of an all-reduce.
pub(super) fn collective(
    name: &'static str,
    who: String,
    result: AllReduce,
    expected: Option<(f64, String)>,
    share: f64,
) -> Check {
    let check = Check::rate(name, "machine", (result.bus, "GB/s"), expected, share);
    let check = Check { what: format!("{who}, bus bandwidth: {}", check.what), ..check };
    if !result.correct {
        let what = format!("{who}: the sums are wrong");
        return Check { outcome: Outcome::Fail, what, ..check }
            .with_hint("run nvbandwidth and memtest, and look for XIDs");
    }
    with_failure_hint(check, "run the command with NCCL_DEBUG=INFO: it shows which links and network cards NCCL uses")
}

/// Adds the hint to a check that prevents acceptance.
pub(super) fn with_failure_hint(check: Check, hint: &str) -> Check {
    if check.outcome.is_acceptable() { check } else { check.with_hint(hint) }
}

/// Whether equal products had equal results: cuBLAS repeats a product bit by bit on one GPU (cuBLAS, "Results Reproducibility").
pub(super) fn repeated(name: &'static str, device: String, loaded: &Loaded) -> Check {
    let count = loaded.compared;
    if count == 0 {
        return Check::new(name, device, Outcome::CannotRun, format!("{} was not found", Need::Kernels.library()))
            .with_hint(Need::Kernels.hint());
    }
    if loaded.different > 0 {
        let what = format!("{} words differed in {count} equal matrix products", loaded.different);
        Check::new(name, device, Outcome::Fail, what)
            .with_hint("the GPU computes wrong results under load: replace the card (RMA)")
    } else {
        Check::new(name, device, Outcome::Pass, format!("{count} equal matrix products, equal results"))
    }
}

/// Whether the load reached the power limit, or the clock that leaves no more to gain.
pub(super) fn power(device: String, gpu: &Gpu, card: Option<&Card>, samples: &Samples, share: f64) -> Check {
    const NAME: &str = "targeted_power";
    let (Some(watts), Some(limit)) = (samples.power_watts, gpu.power_limit_watts) else {
        return Check::new(NAME, device, Outcome::Skip, "the driver does not report the power");
    };
    let full = card.map(|c| c.tensor_mhz).or(gpu.clock_sm_max_mhz);
    let clock = samples.clock_mhz.map(|(_, max)| max);
    let at_full_clock = clock.zip(full).is_some_and(|(now, full)| now >= full);
    let source = Some("the power limit of the GPU".to_owned());
    let measured =
        Measured { value: watts, unit: "W".into(), expected: Some(limit), minimum: Some(limit * share), source };
    let what = format!("up to {watts:.0} of {limit:.0} W");
    let clock = clock.map_or_else(String::new, |mhz| format!(", {mhz} MHz"));
    if watts >= limit * share || at_full_clock {
        return Check::new(NAME, device, Outcome::Pass, format!("{what}{clock}")).with_measured(measured);
    }
    Check::new(NAME, device, Outcome::Warn, format!("{what}{clock}: neither the power limit nor the full clock"))
        .with_measured(measured)
        .with_hint(
            "compare with the other GPUs; check locked clocks (nvidia-smi --reset-gpu-clocks) and the throttle reasons",
        )
}

/// Whether the hardware had to reduce the clocks.
pub(super) fn thermal(name: &'static str, device: String, gpu: &Gpu, samples: &Samples, share: f64) -> Check {
    if samples.count == 0 {
        return Check::new(name, device, Outcome::CannotRun, "the driver reported nothing under load");
    }
    let part = samples.problems as f64 / samples.count as f64;
    let slowdown = gpu.temperature_slowdown_celsius.filter(|limit| *limit > 0);
    let hot = samples.temperature_celsius.zip(slowdown).is_some_and(|(now, limit)| now >= limit);
    let described = samples.describe();
    let hint = "check fans, airflow and the room's temperature; for a power brake, the power supplies and their cables";
    if part > share || hot {
        Check::new(name, device, Outcome::Fail, described).with_hint(hint)
    } else if samples.problems > 0 {
        Check::new(name, device, Outcome::Warn, described).with_hint(hint)
    } else {
        Check::new(name, device, Outcome::Pass, described)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu() -> Gpu {
        Gpu { power_limit_watts: Some(700.0), temperature_slowdown_celsius: Some(87), ..Gpu::default() }
    }

    fn samples(watts: f64, mhz: u32, celsius: u32, problems: usize) -> Samples {
        let (power_watts, clock_mhz) = (Some(watts), Some((mhz, mhz)));
        Samples {
            count: 100,
            power_watts,
            clock_mhz,
            temperature_celsius: Some(celsius),
            problems,
            ..Samples::default()
        }
    }

    #[test]
    fn power_below_the_limit_is_fine_only_at_full_clock() {
        let gpu = Gpu { clock_sm_max_mhz: Some(1980), ..gpu() };
        let outcome = |watts, mhz| power("gpu 0".into(), &gpu, None, &samples(watts, mhz, 60, 0), 0.75).outcome;
        assert_eq!(outcome(690.0, 1400), Outcome::Pass);
        assert_eq!(outcome(300.0, 1980), Outcome::Pass);
        assert_eq!(outcome(300.0, 1400), Outcome::Warn);
        assert_eq!(power("gpu 0".into(), &gpu, None, &Samples::default(), 0.75).outcome, Outcome::Skip);
    }

    #[test]
    fn slowdowns_fail_above_their_share_and_heat_always() {
        let outcome = |celsius, problems| {
            thermal("thermal", "gpu 0".into(), &gpu(), &samples(690.0, 1700, celsius, problems), 0.05).outcome
        };
        assert_eq!((outcome(70, 0), outcome(70, 5), outcome(70, 6)), (Outcome::Pass, Outcome::Warn, Outcome::Fail));
        assert_eq!(outcome(87, 0), Outcome::Fail);
        assert_eq!(thermal("thermal", "gpu 0".into(), &gpu(), &Samples::default(), 0.05).outcome, Outcome::CannotRun);
    }

    #[test]
    fn wrong_sums_and_results_fail_at_any_rate() {
        let result = AllReduce { bus: 400.0, correct: false };
        assert_eq!(
            collective("all_reduce", "8 GPUs".into(), result, Some((450.0, String::new())), 0.65).outcome,
            Outcome::Fail
        );
        let loaded = |compared, different| Loaded { tera: 700.0, compared, different };
        let outcome = |loaded| repeated("diagnostic", "gpu 0".into(), &loaded).outcome;
        assert_eq!(outcome(loaded(9, 0)), Outcome::Pass);
        assert_eq!(outcome(loaded(9, 1)), Outcome::Fail);
        assert_eq!(outcome(loaded(0, 0)), Outcome::CannotRun);
    }
}
