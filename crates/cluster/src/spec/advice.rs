//! What a user should know about a valid `cluster.yaml` before it is applied.

use super::{Cluster, Distribution, Role, minor, releases};

impl Cluster {
    /// Warnings about the file, as sentences for a person. `now_ms` is the time in milliseconds since 1970.
    pub fn warnings(&self, now_ms: i64) -> Vec<String> {
        let spec = &self.spec;
        let mut out = Vec::new();
        let in_groups: usize = spec
            .groups
            .iter()
            .filter(|g| g.roles.contains(&Role::ControlPlane))
            .map(|g| usize::try_from(g.count).unwrap_or(usize::MAX))
            .sum();
        // The machines of groups that exist already are in `spec.machines` too.
        let own = spec.machines.iter().filter(|m| m.provisioned.is_none() && m.is(Role::ControlPlane)).count();
        let planes = own.saturating_add(in_groups);
        if planes >= 2 && planes.is_multiple_of(2) {
            // A quorum is a majority of the members of the database.
            let (quorum, tolerated) = (planes / 2 + 1, planes / 2 - 1);
            let failures = if tolerated == 0 {
                "the loss of either stops the cluster".to_owned()
            } else {
                format!("only {tolerated} may fail")
            };
            out.push(format!(
                "spec.machines: {planes} control planes are no better than {}: the database needs {quorum} of them, so {failures}; use {} or {}",
                planes - 1,
                planes - 1,
                planes + 1
            ));
        }
        if let Some(support) = minor(spec.kubernetes.release()).and_then(|minor| releases::support(minor, now_ms)) {
            out.push(format!("spec.kubernetes: {support}"));
        }
        let kubernetes = &spec.kubernetes;
        if planes > 1 && kubernetes.distribution == Distribution::Kubeadm && kubernetes.endpoint.is_none() {
            out.push(
                "spec.kubernetes.endpoint: without a load balancer or a virtual IP in front of the control planes, nodes reach the API server \
                 only at the first one; it cannot be added later"
                    .into(),
            );
        }
        if let Some(conflict) = self.machine_in_network() {
            out.push(format!(
                "{conflict}; set spec.network.pods and spec.network.services to networks that are not used at your site"
            ));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::FILE;

    /// 2026-11-29.
    const NOW: i64 = 1_795_910_400_000;

    fn warnings(text: &str) -> Vec<String> {
        Cluster::parse(text).unwrap().warnings(NOW)
    }

    #[test]
    fn two_control_planes_and_an_ended_version_are_warned_about() {
        let found = warnings(FILE);
        assert!(
            found[0].contains("2 control planes are no better than 1") && found[1].contains("2026-02-28"),
            "{found:?}"
        );
        let one = FILE
            .replace("cp2, address: 10.0.0.2, roles: [control-plane]", "cp2, address: 10.0.0.2, roles: [worker]")
            .replace("1.32/", "1.36/");
        assert_eq!(warnings(&one), Vec::<String>::new());
        assert!(warnings(&one.replace("10.0.0.2", "10.1.0.2"))[0].contains("10.1.0.0/16"));
        let group = "spec:\n  providers: {d: {digitalocean: {token: {env: T}, region: r, sshKeys: []}}}\n  groups: [{name: g, provider: d, size: s, image: i, count: 3, roles: [control-plane]}]";
        assert!(warnings(&one.replace("spec:", group))[0].contains("4 control planes are no better than 3"));
    }
}
