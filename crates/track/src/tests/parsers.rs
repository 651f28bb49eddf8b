//! Property tests of this crate's parsers; see `slipway_mutations`.

use slipway_mutations::{feed, feed_bytes};

use crate::filter::{entities, order, page_token, runs};
use crate::location::StoredLocation;
use crate::points::{self, ByKey, Point};

#[test]
fn filters_never_panic() {
    let valid = [
        "metrics.acc > -0.5 AND params.\"a b\" = 'x' and tags.`mlflow.user` ilike \"y%\"",
        "attributes.run_id NOT IN ('a', \"b\") AND tags.x IS NOT NULL AND start_time >= 1e3",
        "name = 'm' AND dataset.name LIKE '%x'",
    ];
    feed(&valid, |text| {
        let _ = crate::filter::parse(text, true);
        let _ = runs::compile(text, &[text.to_owned()]);
        for searchable in [&entities::EXPERIMENTS, &entities::MODELS, &entities::VERSIONS] {
            let _ = entities::compile(searchable, text);
        }
    });
    feed(&["metrics.`a b` DESC", "attributes.start_time ASC"], |text| drop(order::parse(text)));
    feed(&["eyJvZmZzZXQiOiAxMDB9"], |text| drop(page_token::decode(Some(text))));
    feed(&["mlflow-artifacts:/1/abc", "mlflow-artifacts://host:5000/1/abc?x"], |text| {
        drop(StoredLocation::parse(text))
    });
}

#[test]
fn corrupt_metric_rows_never_panic() {
    let point = |step, value| Point { step, timestamp: 1_700_000_000_000 + step, value };
    let row = points::pack([("a", point(1, 0.5)), ("b", point(2, f64::NAN)), ("a", point(3, -1.0))].into_iter());
    feed_bytes(std::slice::from_ref(&row), |bytes| {
        let _ = points::unpack(bytes, "a", &mut Vec::new());
        let mut grouped = ByKey::default();
        let _ = (grouped.add(&row), grouped.add(bytes), grouped.add(&row));
        let _ = grouped.sorted();
    });
}
