//! Property tests of this crate's parsers; see `slipway_mutations`.

use slipway_mutations::feed;

use crate::Manifest;
use crate::quantity::Quantity;

#[test]
fn manifests_never_panic() {
    let valid = "apiVersion: slipway.dev/v1\nkind: Run\nmetadata: {name: train, labels: {a: b}}\nspec:\n  command: [python, train.py]\n  env:\n    - {name: A, value: 'b'}\n    - name: C\n      valueFrom: {secretKeyRef: {name: s, key: k}}\n  envFrom: [{secretRef: {name: x}}]\n  resources: {limits: {cpu: 500m, memory: 4Gi, nvidia.com/gpu: 1}}\n  volumes: [{name: v, emptyDir: {}}]\n  backoffLimit: 2\n";
    feed(&[valid], |text| {
        if let Ok(run) = Manifest::parse(text) {
            let run = run.named();
            let _ = (run.spec.resources.gpus(), run.spec.resources.amount("cpu"));
            // A variable with a NUL byte cannot be passed to a program.
            let is_passable = |text: &String| !text.contains('\0');
            assert!(run.spec.env.iter().all(|v| is_passable(&v.name) && v.value.iter().all(is_passable)));
            assert!(run.spec.command.iter().chain(&run.spec.args).all(is_passable));
        }
    });
}

#[test]
fn quantities_never_panic() {
    feed(&["500m", "4Gi", "1e3", "2E"], |text| {
        let value = Quantity::Text(text.to_owned()).value();
        assert!(value.is_none_or(|v| v.is_finite() && v >= 0.0), "{text:?}");
    });
}
