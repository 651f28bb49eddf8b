//! Tests of the estimate, its layouts and its targets.

use super::*;
use crate::sheet::Precision;
use crate::transformer::Description;

fn serve(params: &str, seq: u64) -> Request {
    Request { model: Description::of_size(params), seq, ..Request::default() }
}

fn gib(estimate: &Estimate, what: &str) -> f64 {
    estimate.parts.iter().filter(|p| p.what == what).map(|p| p.bytes / GIB).sum()
}

fn fits<'a>(estimate: &'a Estimate, name: &str) -> Option<&'a Fit> {
    estimate.fits.iter().find(|f| f.name == name)
}

const H100: &str = "H100 80GB HBM3";

#[test]
fn caches_have_the_size_of_the_models_attention() {
    for (params, dtype, seq, expected) in [
        ("405b", "bf16", 131_072, 63.0),
        // 576 x 61 x 131072 x 1 B.
        ("671b", "fp8", 131_072, 4.3),
        ("47b", "bf16", 32_768, 4.0),
        ("8x7b", "bf16", 32_768, 4.0),
        ("32b", "bf16", 32_768, 8.0),
        ("7.24b", "bf16", 32_768, 4.0),
        ("7.62b", "bf16", 32_768, 1.75),
        ("70b", "bf16", 131_072, 40.0),
        ("8b", "bf16", 131_072, 16.0),
        ("7b", "bf16", 4096, 2.0),
    ] {
        let request = Request { dtype: Some(dtype.parse().unwrap()), ..serve(params, seq) };
        let found = gib(&fit(&request).unwrap(), "key-value cache");
        assert!((found / expected - 1.0).abs() < 0.01, "{params} at {seq}: {found} GiB, expected {expected}");
    }
    // Mistral 7B v0.1 has a window of 4,096 tokens; v0.3 has none: 4 GiB.
    let mistral = |name: &str| {
        let request = Request { model: Description::of_model(name), seq: 32_768, ..Request::default() };
        gib(&fit(&request).unwrap(), "key-value cache")
    };
    assert!((mistral("mistral-7b-v0.1") - 0.5).abs() < 0.01 && (mistral("mistral-7b-v0.3") - 4.0).abs() < 0.01);
    let wide = Request { dtype: Some(Format::Fp8), kv_dtype: Some(Precision::Bf16), ..serve("671b", 131_072) };
    assert!((gib(&fit(&wide).unwrap(), "key-value cache") - 8.6).abs() < 0.05);
}

#[test]
fn cost_is_that_of_the_cards_price() {
    let prices = [(H100.to_owned(), 3.0), ("H200".to_owned(), 4.0)].into();
    let estimate = fit(&Request { prices, batch: 16, ..serve("70b", 8192) }).unwrap();
    let cost = |name: &str| fits(&estimate, name).unwrap().serving.clone().unwrap().dollars_per_hour;
    assert_eq!((cost(H100), cost("A100-SXM4-80GB")), (Some(12.0), None));
    let h200 = fits(&estimate, "H200").unwrap();
    assert_eq!(cost("H200"), Some(4.0 * h200.count as f64));
    let everywhere =
        fit(&Request { price: Some(1.0), prices: [(H100.to_owned(), 3.0)].into(), ..serve("7b", 4096) }).unwrap();
    assert!(
        everywhere.fits.iter().all(|f| f.serving.as_ref().is_none_or(|s| s.dollars_per_hour == Some(f.count as f64)))
    );
    assert!(fit(&Request { prices: [(H100.to_owned(), -1.0)].into(), ..serve("7b", 4096) }).is_err());
}

#[test]
fn machines_of_superchips_have_their_own_numbers_of_gpus() {
    let on = |card: &str, gpus, change: fn(&mut Request)| {
        let mut request = Request { card: Some(card.into()), gpus, ..serve("70b", 8192) };
        change(&mut request);
        fit(&request)
    };
    // 70b in bf16 has 131 GiB, and a DGX Spark 122: nobody sells a machine with two.
    let spark = on("GB10", None, |_| ()).unwrap();
    assert!(spark.fits.is_empty() && spark.nearest.unwrap().starts_with("1 x GB10"), "{:?}", spark.fits);
    assert!(
        spark.assumptions.iter().any(|a| a.contains("a machine with GB10 has 1 GPU: a DGX Spark")),
        "{:?}",
        spark.assumptions
    );
    let two = on("GB10", Some(2), |r| r.pp = Some(2)).unwrap();
    assert_eq!(two.fits.first().map(|f| (f.count, f.nodes)), Some((2, 2)), "{:?}", two.nearest);
    // A rack is one NVLink domain, so tensor parallelism may span trays of four.
    let rack = on("GB200", Some(8), |r| r.tp = Some(8)).unwrap();
    assert_eq!(rack.fits.first().map(|f| (f.nodes, f.layout.tensor)), Some((2, 8)));
    let machines = on("H200", Some(8), |r| r.tp = Some(8)).unwrap();
    assert_eq!(machines.fits.first().map(|f| f.nodes), Some(1));
    let refused = on("GB10", None, |r| r.gpus_per_node = Some(8)).unwrap_err().to_string();
    assert!(refused.contains("the largest machine with GB10 has 1"), "{refused}");
}

#[test]
fn large_models_fit_on_the_machines_that_run_them() {
    let llama = fit(&Request { dtype: Some(Format::Bf16), ..serve("405b", 131_072) }).unwrap();
    assert_eq!(fits(&llama, "H200").map(|f| f.count), Some(8), "{:?}", llama.nearest);
    let deepseek = fit(&Request { dtype: Some(Format::Fp8), ..serve("671b", 131_072) }).unwrap();
    assert_eq!(fits(&deepseek, "H200").map(|f| (f.count, f.nodes)), Some((8, 1)));
    assert_eq!(fits(&deepseek, H100).map(|f| (f.count, f.nodes)), Some((16, 2)));
}

#[test]
fn only_numbers_of_gpus_that_servers_start_with_are_proposed() {
    let estimate = fit(&Request { batch: 16, ..serve("70b", 8192) }).unwrap();
    assert_eq!(fits(&estimate, H100).map(|f| (f.count, f.layout.tensor)), Some((4, 4)));
    assert!(estimate.fits.iter().all(|f| f.count.is_power_of_two()), "{:?}", estimate.fits);
    for tensor in [3, 6] {
        let refused = fit(&Request { card: Some(H100.into()), tp: Some(tensor), ..serve("70b", 8192) }).unwrap();
        assert!(refused.fits.is_empty());
        let why = refused.nearest.unwrap();
        assert!(why.contains(&format!("64 attention heads are not divisible by tensor parallelism {tensor}")), "{why}");
    }
    // 16 bytes per parameter are 1,051 GiB, more than seven B200 have.
    let adam = Training { recompute: Recompute::Full, ..Training::default() };
    let training = fit(&train("70b", adam)).unwrap();
    assert_eq!(fits(&training, "B200").map(|f| f.count), Some(8), "{:?}", training.nearest);
    assert!(training.fits.iter().all(|f| f.count.is_power_of_two()), "{:?}", training.fits);
}

#[test]
fn overhead_counts_on_every_gpu() {
    let estimate = fit(&Request { card: Some(H100.into()), gpus: Some(8), ..serve("70b", 4096) }).unwrap();
    let part = estimate.fits[0].parts.iter().find(|p| p.what.starts_with("CUDA")).unwrap();
    assert!(part.bytes / GIB > 1.0, "{part:?}");
    assert!(estimate.considered.len() > 3 && estimate.considered.iter().any(|c| c.reason.is_some()));
}

#[test]
fn cards_and_slices_have_the_memory_that_the_driver_reports() {
    let estimate = fit(&serve("18.6b", 1)).unwrap();
    let single = |name: &str| fits(&estimate, name).is_some_and(|f| f.count == 1);
    assert!(single("A100-SXM4-80GB") && single("A100-SXM4-40GB") && single(H100));
    for (card, gib) in [(H100, 79.6), ("H200", 140.4), ("B200", 179.1)] {
        assert!((fits(&estimate, card).unwrap().memory / GIB - gib).abs() < 0.1, "{card}");
    }
    // 70b in bf16 is 131.4 GiB; an H200 has 140.4.
    let large = fit(&Request { card: Some("H200".into()), ..serve("70b", 4096) }).unwrap();
    assert_eq!(large.fits[0].count, 1, "{large:?}");
    assert!((large.fits[0].memory / GIB - 140.4).abs() < 0.1);
    let h100 = fits(&estimate, H100).unwrap().memory;
    let slice = estimate
        .fits
        .iter()
        .chain(&fit(&serve("7b", 1)).unwrap().fits)
        .find(|f| f.name.contains("3g.40gb of H100"))
        .cloned();
    assert!(slice.is_some_and(|s| s.memory < h100 / 2.0 && s.count == 1));
}

#[test]
fn what_fits_on_nothing_is_said_in_words() {
    let request = Request { card: Some("Tesla T4".into()), gpus: Some(1), ..serve("70b", 4096) };
    let estimate = fit(&request).unwrap();
    assert!(estimate.fits.is_empty());
    let why = estimate.nearest.unwrap();
    assert!(why.contains("1 x Tesla T4") && why.contains("GiB of it weights"), "{why}");
}

#[test]
fn named_slices_and_parts_of_cards_are_targets() {
    let on = |card: &str, share| fit(&Request { card: Some(card.into()), share, ..serve("1b", 2048) });
    assert!(on("3g.40gb of H100 80GB HBM3", None).unwrap().fits[0].name.contains("3g.40gb"));
    let half = on(H100, Some(2)).unwrap();
    assert!((half.fits[0].memory / GIB - 39.8).abs() < 0.1 && half.fits[0].name.starts_with("1/2 of"));
    assert!(on("9g.99gb of H100 80GB HBM3", None).is_err() && on("no such card", None).is_err());
}

/// A 1g.20gb of an H100 has 26 of its 132 multiprocessors.
#[test]
fn slices_compute_with_their_multiprocessors() {
    let tera = |card: &str| {
        let request = Request { card: Some(card.into()), ..serve("1b", 2048) };
        targets(&request).unwrap()[0].roof.ceiling(Precision::Bf16).unwrap().tera
    };
    let share = tera("1g.20gb of H100 80GB HBM3") / tera(H100);
    assert!((share - 26.0 / 132.0).abs() < 1e-9, "{share}");
}

fn train(params: &str, training: Training) -> Request {
    Request { train: Some(training), ..serve(params, 2048) }
}

#[test]
fn adam_training_needs_16_bytes_per_parameter() {
    let estimate = fit(&train("7b", Training { recompute: Recompute::Full, ..Training::default() })).unwrap();
    let state = ["weights", "gradients", "optimizer"].iter().map(|w| gib(&estimate, w) * GIB).sum::<f64>();
    assert!((state / (16.0 * estimate.parameters) - 1.0).abs() < 1e-6, "{state}");
    assert!(fits(&estimate, H100).is_none_or(|f| f.count > 1));
}

#[test]
fn training_counts_the_logits_and_their_gradient() {
    let request = Request { batch: 8, ..train("1b", Training { recompute: Recompute::Full, ..Training::default() }) };
    let estimate = fit(&Request { seq: 8192, ..request }).unwrap();
    // 8 x 8192 x 128256 x 4 B = 31.3 GiB, and their gradient again.
    assert!((gib(&estimate, "logits") - 62.6).abs() < 0.1, "{:?}", estimate.parts);
    assert!(estimate.fits.iter().all(|f| f.memory / GIB > 40.0 || f.count > 1));
}

#[test]
fn adapters_and_small_states_need_less() {
    let total = |method| {
        let request = train("8b", Training { method, recompute: Recompute::Full, ..Training::default() });
        fit(&request).unwrap().bytes / GIB
    };
    let order =
        [Method::Qlora, Method::Lora, Method::Sgd, Method::Adafactor, Method::Adam8bit, Method::Momentum, Method::Adam];
    let sizes = order.map(total);
    assert!(sizes.is_sorted(), "{sizes:?}");
    assert!(sizes[0] < 12.0 && sizes[1] > 16.0 && sizes[6] > 110.0, "{sizes:?}");
}

#[test]
fn impossible_combinations_are_rejected() {
    let dtype = |params: &str, dtype: &str, training| {
        fit(&Request { dtype: Some(dtype.parse().unwrap()), ..train(params, training) })
    };
    let adam = Training::default();
    for format in ["int8", "fp8", "awq", "nf4"] {
        let refused = dtype("7b", format, adam).unwrap_err().to_string();
        assert!(refused.contains("cannot train weights in"), "{refused}");
    }
    assert!(dtype("7b", "bf16", Training { method: Method::Qlora, ..adam }).is_err());
    assert!(dtype("7b", "int8", Training { method: Method::Lora, ..adam }).is_ok());
    assert!(dtype("7b", "bf16", Training { zero: Some(4), ..adam }).is_err());
    assert!(dtype("7b", "bf16", Training { gradients: Precision::Fp8, ..adam }).is_err());
    for bad in [
        Request { batch: 0, ..serve("7b", 4096) },
        serve("7b", 0),
        Request { utilization: f64::NAN, ..serve("7b", 4096) },
        Request { gpus: Some(0), ..serve("7b", 4096) },
        Request { gpus: Some(9), nodes: Some(2), ..serve("7b", 4096) },
        Request { gpus: Some(1 << 40), ..serve("7b", 4096) },
        Request { network: 0.0, ..serve("7b", 4096) },
    ] {
        assert!(fit(&bad).is_err(), "{bad:?}");
    }
}

#[test]
fn layouts_of_several_machines_are_found_for_training() {
    let adam = Training { recompute: Recompute::Full, ..Training::default() };
    let estimate = fit(&Request { card: Some(H100.into()), ..train("70b", adam) }).unwrap();
    let found = &estimate.fits[0];
    assert!(found.count >= 16 && found.count.is_power_of_two() && found.nodes == found.count / 8, "{found:?}");
    let fixed = Request { card: Some(H100.into()), gpus: Some(64), tp: Some(8), pp: Some(4), ..train("405b", adam) };
    let refused = fit(&fixed).unwrap();
    assert!(refused.considered.iter().all(|c| c.layout.tensor == 8 && c.layout.pipeline == 4));
}

#[test]
fn serving_figures_are_consistent() {
    let request = Request { card: Some(H100.into()), batch: 64, price: Some(2.5), ..serve("8b", 8192) };
    let estimate = fit(&request).unwrap();
    let serving = estimate.fits[0].serving.clone().unwrap();
    assert!((serving.cache_tokens / serving.concurrency - 8192.0).abs() < 1e-6);
    assert!((64.0..192.0).contains(&serving.concurrency), "{serving:?}");
    assert!((serving.ridge_batch - 316.0).abs() < 10.0, "{serving:?}");
    let hourly = serving.dollars_per_hour.unwrap();
    assert!((hourly - 2.5 * estimate.fits[0].count as f64).abs() < 1e-9);
    let million = serving.dollars_per_million_tokens.unwrap();
    assert!((million * serving.tokens_per_second * 3600.0 / 1e6 / hourly - 1.0).abs() < 1e-9);
}

#[test]
fn every_part_says_its_formula_and_numbers() {
    for request in [serve("671b", 4096), train("8b", Training::default()), serve("80b-a3b", 4096)] {
        let estimate = fit(&request).unwrap();
        assert!(estimate.parts.len() >= 4);
        for part in &estimate.parts {
            assert!(!part.formula.is_empty() && part.numbers.chars().any(|c| c.is_ascii_digit()), "{part:?}");
            assert!(part.bytes.is_finite() && part.bytes >= 0.0, "{part:?}");
        }
    }
}
