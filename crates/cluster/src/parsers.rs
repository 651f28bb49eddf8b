//! Property tests of this crate's parsers; see `slipway_mutations`.

use slipway_mutations::feed;

use crate::kinds;
use crate::probe::Facts;
use crate::resource::Edit;
use crate::spec::tests::FILE;
use crate::spec::{Cluster, edit, minor};

#[test]
fn cluster_files_never_panic() {
    let more = "spec:\n  ssh: {user: root, port: 22}\n  providers: {d: {digitalocean: {token: {env: T}, region: r, sshKeys: []}}}\n  groups:\n    - {name: gpu, provider: d, size: s, image: i, count: 2, roles: [worker, gpu]}\n  system: {sysctl: {vm.swappiness: '1'}, files: [{path: /etc/x, toml: {a.b: 1}}]}\n  storage: {classes: [{name: shared, share: {nfs: {server: 10.0.0.9, path: /export}}}]}\n  gpu: {sharing: {mig: {1g.10gb: 7}}}";
    feed(&[FILE.to_owned(), FILE.replace("spec:", more)], |text| {
        if let Ok(cluster) = Cluster::parse(text) {
            let _ = (cluster.secrets(), cluster.first());
        }
        let _ = edit::channel(text, "1.33/stable");
        let _ = edit::count(text, "gpu", 3);
    });
    feed(&["1.32/stable", "v1.33.4-rc"], |text| {
        let _ = minor(text);
    });
}

#[test]
fn probe_output_never_panics() {
    let valid = "@\tos\t=ubuntu 24.04\n@\tkernel\t=6.8.0 x86_64\n@\tclock\t=1700000000\n@\tgpus\t=0000:01:00.0 0x2330;\n@\tgpunames\t=0x2330 GH100;\n@\tdriver\t=570.1\n@\tfabric\t=nvlink5\n@\tfabricmanager\t=active 1:570.1-1\n@\tinodes\t=5\n@\tsnaps\tTmFtZSBWZXJzaW9uCm1pY3JvazhzIHYxIDEgMS4zMi9zdGFibGUgYyBoZWxkCg==\nf\tstat\t=644 regular file\nf\tcontent\tYQo=\n@\tend\t=end\n";
    let cluster = Cluster::parse(FILE).unwrap();
    let desired = crate::layers::desired_state(&cluster, &cluster.spec.machines[2]).unwrap();
    feed(&[valid], |text| {
        let Ok(facts) = Facts::parse(text) else { return };
        let _ = crate::doctor::examine(&facts, &cluster.spec.machines[2], &cluster.spec.gpu, 1_700_000_000_000);
        let _ = desired.check(&facts);
    });
}

#[test]
fn edits_of_files_on_a_machine_never_panic() {
    let toml = Edit::Toml { path: vec!["a".into(), "b".into()], value: "1".into() };
    feed(&["# x\n[a]\nb = 2\n", "a = {b = 1}\n", "[[a]]\n"], |text| drop(kinds::edit::apply_edit(text, &toml)));
    let yaml = Edit::Yaml { path: vec!["a".into(), "b".into()], value: serde_json::json!(1) };
    feed(&["# x\na:\n  b: 2 # c\n", "a: {b: 1}\n", "- 1\n"], |text| drop(kinds::edit::apply_edit(text, &yaml)));
    let block = Edit::Block { name: "n".into(), text: "new".into() };
    feed(&["a\n# BEGIN n\nb\n# END n\n"], |text| drop(kinds::edit::apply_edit(text, &block)));
}
