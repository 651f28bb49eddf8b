//! Labels and taints of nodes. What slipway has set is recorded in an annotation of the node, so that slipway removes what is no longer in
//! the file, and never the labels and taints of anybody else.

use super::command;
use crate::resource::{Layer, Resource, ResourceKind};
use crate::shell::quote;
use crate::spec::{Cluster, Machine};

/// Annotation with the keys of the labels that slipway has set, separated by commas.
const LABELS: &str = "slipway.dev/labels";
/// Annotation with the taints that slipway has set, as `KEY:EFFECT` separated by commas.
const TAINTS: &str = "slipway.dev/taints";

/// A JSONPath template of an annotation.
fn annotation(name: &str) -> String {
    format!("{{.metadata.annotations.{}}}", name.replace('.', "\\."))
}

/// Shell commands that set the labels and taints of a node, after removing those that slipway has set before and that are not in `labels`
/// and `taints`.
fn set(kubectl: &str, node: &str, labels: &[(String, String)], taints: &[(String, String)]) -> String {
    let mut out = String::from("set -e\n");
    for (name, verb, list, separator) in [(LABELS, "label", labels, '='), (TAINTS, "taint", taints, '\n')] {
        let keys: Vec<&str> = list.iter().map(|(key, _)| key.as_str()).collect();
        let kept: String = keys.iter().map(|key| format!(" {key}")).collect();
        out += &format!(
            "for k in $({kubectl} get node {node} -o jsonpath={} | tr , ' '); do\n  case {} in *\" $k \"*) ;; *) {kubectl} {verb} node {node} \"$k-\" || true;; esac\ndone\n",
            quote(&annotation(name)),
            quote(&format!("{kept} ")),
        );
        // Recorded first: if setting them is interrupted, they can still be removed.
        out += &match keys.is_empty() {
            true => format!("{kubectl} annotate node {node} {name}-\n"),
            false => format!("{kubectl} annotate node {node} {name}={} --overwrite\n", quote(&keys.join(","))),
        };
        let words: String = list
            .iter()
            .map(|(key, value)| if separator == '=' { quote(&format!("{key}={value}")) } else { quote(value) })
            .map(|word| format!(" {word}"))
            .collect();
        if !words.is_empty() {
            out += &format!("{kubectl} {verb} node {node}{words} --overwrite\n");
        }
    }
    out
}

/// The labels and taints of one machine.
fn node(cluster: &Cluster, machine: &Machine) -> Resource {
    let (kubectl, name) = (cluster.spec.kubernetes.distribution.kubectl(), quote(&machine.name));
    let labels: Vec<(String, String)> = machine.labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    let taints: Vec<(String, String)> =
        machine.taints.iter().map(|t| (format!("{}:{}", t.key, t.effect.name()), t.to_string())).collect();
    let selector = labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
    let template = format!(
        "{}|{}|{{range .spec.taints[*]}}{{.key}}={{.value}}:{{.effect}},{{end}}",
        annotation(LABELS),
        annotation(TAINTS)
    );
    let join = |list: &[(String, String)]| list.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>().join(",");
    let recorded = format!("{}|{}|", join(&labels), join(&taints));
    let mut check = format!(
        "x=$({kubectl} get node {name} -o jsonpath={}) && case \"$x\" in {}*) ;; *) false;; esac",
        quote(&template),
        quote(&recorded)
    );
    for taint in &machine.taints {
        let shown = format!("{}={}:{}", taint.key, taint.value, taint.effect.name());
        check += &format!(" && case \",${{x##*|}}\" in *,{},*) ;; *) false;; esac", quote(&shown));
    }
    if !selector.is_empty() {
        let selected = format!("{kubectl} get nodes -l {} -o name", quote(&selector));
        check += &format!(" && {selected} | grep -qxF {}", quote(&format!("node/{}", machine.name)));
    }
    let words: Vec<String> =
        labels.iter().map(|(k, v)| format!("{k}={v}")).chain(taints.iter().map(|(_, t)| t.clone())).collect();
    let missing = format!("{}: {}", machine.name, words.join(" "));
    let mut out = command(Layer::Nodes, &machine.name, &check, &set(kubectl, &name, &labels, &taints), &missing);
    if let ResourceKind::Command { undo, .. } = &mut out.what {
        *undo = Some(set(kubectl, &name, &[], &[]));
    }
    if taints.iter().any(|(key, _)| key.ends_with(":NoExecute")) {
        out.effect("evicts pods that do not tolerate the taint")
    } else {
        out
    }
}

/// The labels and taints of all nodes, and the removal of those of machines that have none in the file any more.
pub(super) fn resources(cluster: &Cluster) -> Vec<Resource> {
    let kubectl = cluster.spec.kubernetes.distribution.kubectl();
    let marked = |machine: &&Machine| !machine.labels.is_empty() || !machine.taints.is_empty();
    let mut out: Vec<Resource> =
        cluster.spec.machines.iter().filter(marked).map(|machine| node(cluster, machine)).collect();
    let template =
        format!("{{range .items[*]}}{{.metadata.name}} {}{}{{\"\\n\"}}{{end}}", annotation(LABELS), annotation(TAINTS));
    let keep: String = cluster.spec.machines.iter().filter(marked).map(|m| format!(" -e {}", quote(&m.name))).collect();
    // A node without annotations is followed by a space only.
    let others = format!(
        "{kubectl} get nodes -o jsonpath={} 2>/dev/null | sed -n 's/ ..*$//p' | grep -vxF -e ''{keep}",
        quote(&template)
    );
    let run = format!("{others} | while read -r n; do\n{}\ndone", set(kubectl, "\"$n\"", &[], &[]));
    // The name has a dot, so it differs from all names of machines.
    let check = format!("! {{ {others}; }}");
    out.push(command(Layer::Nodes, "other.nodes", &check, &run, "labels and taints that are no longer in the file"));
    out
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::spec::tests::FILE;

    /// A `microk8s kubectl` that records its arguments, and responds to each `get` with the text of the file named after its number of words.
    #[test]
    fn labels_and_taints_are_set_checked_and_removed() {
        let more = "name: gpu1, labels: {zone: a, pool: h100}, taints: ['nvidia.com/gpu=yes:NoSchedule'],";
        let cluster = Cluster::parse(&FILE.replace("name: gpu1,", more)).unwrap();
        let resources = resources(&cluster);
        let folder = std::env::temp_dir().join(slipway_core::ids::hex32());
        std::fs::create_dir_all(&folder).unwrap();
        let here = folder.display().to_string();
        let program = folder.join("microk8s");
        std::fs::write(&program, format!("#!/bin/sh\necho \"$*\" >>{here}/log\ncase \"$*\" in *' -l '*) cat {here}/selected;; *'get node '*'|'*) cat {here}/state;; *'get node '*) cat {here}/recorded;; *'get nodes'*) cat {here}/all;; esac\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
        let sh = |script: &str| {
            let path = format!("{here}:{}", std::env::var("PATH").unwrap());
            std::process::Command::new("sh").env("PATH", path).args(["-c", script]).status().unwrap().success()
        };
        let script = |n: usize| match &resources[n].what {
            ResourceKind::Command { check, run, .. } => (check.clone(), run.clone()),
            _ => panic!(),
        };
        let (check, run) = script(0);
        assert_eq!((resources[0].id.as_str(), resources.len()), ("nodes/gpu1", 2));
        for (state, selected, converged) in [
            (
                "pool,zone|nvidia.com/gpu:NoSchedule|other=:NoExecute,nvidia.com/gpu=yes:NoSchedule,",
                "node/gpu1\n",
                true,
            ),
            ("pool,zone|nvidia.com/gpu:NoSchedule|nvidia.com/gpu=no:NoSchedule,", "node/gpu1\n", false),
            ("pool,zone|nvidia.com/gpu:NoSchedule|nvidia.com/gpu=yes:NoSchedule,", "node/gpu2\n", false),
            ("pool,zone,gone|nvidia.com/gpu:NoSchedule|nvidia.com/gpu=yes:NoSchedule,", "node/gpu1\n", false),
            ("||", "", false),
        ] {
            write("state", state);
            write("selected", selected);
            assert_eq!(sh(&check), converged, "{state}");
        }
        write("recorded", "zone,gone");
        write("log", "");
        assert!(sh(&run));
        let log = std::fs::read_to_string(folder.join("log")).unwrap();
        assert!(log.contains("label node gpu1 gone-\n") && !log.contains("label node gpu1 zone-"), "{log}");
        assert!(log.contains("annotate node gpu1 slipway.dev/labels=pool,zone --overwrite\nkubectl label node gpu1 pool=h100 zone=a --overwrite\n"), "{log}");
        assert!(log.contains("taint node gpu1 nvidia.com/gpu=yes:NoSchedule --overwrite\n"), "{log}");
        let (check, run) = script(1);
        for (all, converged) in [("cp1 \ngpu1 zone\n", true), ("cp1 zone\ngpu1 zone\n", false), ("", true)] {
            write("all", all);
            assert_eq!(sh(&check), converged, "{all}");
        }
        write("all", "cp1 zone\n");
        write("recorded", "zone");
        assert!(sh(&run));
        let log = std::fs::read_to_string(folder.join("log")).unwrap();
        assert!(
            log.contains("label node cp1 zone-\n") && log.contains("annotate node cp1 slipway.dev/labels-\n"),
            "{log}"
        );
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
