//! The status of a ComputeDomain, as a pure function of its members and of the indices that they already have.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use slipway_core::compute_domain::{MAX_NODES_PER_CLIQUE, MEMBER_ANNOTATION, Member};

use super::{domain_label, uid};

/// Index of a node without a clique, which needs no index. As upstream.
const NO_INDEX: i64 = -1;

/// The next status, and the problems of members as `NODE: PROBLEM`.
pub(super) struct Next {
    pub(super) status: Value,
    pub(super) problems: Vec<String>,
}

/// The member that a node reports; `None` if it belongs to another domain or its report is invalid.
fn member(domain: &Value, node: &Value) -> Option<Member> {
    let text = node["metadata"]["annotations"][MEMBER_ANNOTATION].as_str()?;
    let member: Member = serde_json::from_str(text).ok()?;
    let valid = domain_label(node) == uid(domain) && member.domain == uid(domain) && !member.address.is_empty();
    valid.then_some(member)
}

/// Whether the kubelet of a node is ready. The agent of a node that is down cannot report that its daemon is down too.
fn is_up(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// The status of a domain with these nodes. A node keeps the index that it has in the current status, and a new one gets the lowest that is
/// free in its clique, so that the names of the other nodes in IMEX's configuration do not change.
pub(super) fn next<'a>(domain: &Value, nodes: impl Iterator<Item = &'a Value>) -> Next {
    let members: BTreeMap<&str, (Member, bool)> =
        nodes.filter_map(|n| Some((n["metadata"]["name"].as_str()?, (member(domain, n)?, is_up(n))))).collect();
    let mut taken: BTreeMap<&str, BTreeSet<i64>> = BTreeMap::new();
    let mut indices: BTreeMap<&str, i64> = BTreeMap::new();
    for known in domain["status"]["nodes"].as_array().into_iter().flatten() {
        let (Some(name), Some(index)) = (known["name"].as_str(), known["index"].as_i64()) else { continue };
        let Some((name, (member, _))) = members.get_key_value(name) else { continue };
        let is_valid =
            (0..i64::from(MAX_NODES_PER_CLIQUE)).contains(&index) && known["cliqueID"] == member.clique.as_str();
        if is_valid && !member.clique.is_empty() && taken.entry(&member.clique).or_default().insert(index) {
            indices.insert(name, index);
        }
    }
    let mut problems = Vec::new();
    let mut listed = Vec::new();
    for (name, (member, up)) in &members {
        let index = if member.clique.is_empty() {
            Some(NO_INDEX)
        } else {
            let taken = taken.entry(&member.clique).or_default();
            indices.get(name).copied().or_else(|| (0..i64::from(MAX_NODES_PER_CLIQUE)).find(|i| taken.insert(*i)))
        };
        let Some(index) = index else {
            problems.push(format!(
                "{name}: the domain already has {MAX_NODES_PER_CLIQUE} nodes of clique {}",
                member.clique
            ));
            continue;
        };
        if !member.problem.is_empty() {
            problems.push(format!("{name}: {}", member.problem));
        }
        let status = readiness(member.ready && *up);
        listed.push(json!({
            "name": name, "ipAddress": member.address, "cliqueID": member.clique, "index": index, "status": status,
        }));
    }
    let desired = domain["spec"]["numNodes"].as_u64().unwrap_or(0);
    let all_ready = listed.iter().all(|n| n["status"] == "Ready") && listed.len() as u64 >= desired;
    Next { status: json!({"status": readiness(all_ready), "nodes": listed}), problems }
}

fn readiness(ready: bool) -> &'static str {
    if ready { "Ready" } else { "NotReady" }
}

#[cfg(test)]
mod tests {
    use super::super::DOMAIN_LABEL;
    use super::*;

    fn domain(num_nodes: u32, nodes: Value) -> Value {
        json!({"metadata": {"uid": "d1"}, "spec": {"numNodes": num_nodes}, "status": {"nodes": nodes}})
    }

    fn node(name: &str, member: &Member, up: bool) -> Value {
        json!({
            "metadata": {
                "name": name, "labels": {DOMAIN_LABEL: member.domain},
                "annotations": {MEMBER_ANNOTATION: serde_json::to_string(member).unwrap()},
            },
            "status": {"conditions": [{"type": "Ready", "status": if up { "True" } else { "Unknown" }}]},
        })
    }

    fn member(clique: &str, ready: bool) -> Member {
        let (domain, address) = ("d1".into(), "10.0.0.1".into());
        Member { domain, address, clique: clique.into(), ready, problem: String::new() }
    }

    /// Name, index and status of each node, after the status of the domain.
    fn summary(next: &Next) -> String {
        let nodes = next.status["nodes"].as_array().unwrap().iter();
        let nodes =
            nodes.map(|n| format!(" {}={}:{}", n["name"].as_str().unwrap(), n["index"], n["status"].as_str().unwrap()));
        format!("{}{}", next.status["status"].as_str().unwrap(), nodes.collect::<String>())
    }

    #[test]
    fn nodes_keep_their_index_and_new_ones_fill_gaps() {
        let known = json!([
            {"name": "b", "cliqueID": "c", "index": 2}, {"name": "gone", "cliqueID": "c", "index": 0},
            {"name": "moved", "cliqueID": "other", "index": 1},
        ]);
        let nodes = [
            node("a", &member("c", true), true),
            node("b", &member("c", true), true),
            node("moved", &member("c", true), true),
            node("elsewhere", &member("other", false), true),
        ];
        let next = next(&domain(2, known), nodes.iter());
        assert_eq!(summary(&next), "NotReady a=0:Ready b=2:Ready elsewhere=0:NotReady moved=1:Ready");
    }

    #[test]
    fn domain_is_ready_with_all_desired_nodes_ready() {
        let one = [node("a", &member("c", true), true)];
        assert_eq!(summary(&next(&domain(2, Value::Null), one.iter())), "NotReady a=0:Ready");
        assert_eq!(summary(&next(&domain(1, Value::Null), one.iter())), "Ready a=0:Ready");
        assert_eq!(summary(&next(&domain(0, Value::Null), [].iter())), "Ready", "as upstream");
        let down = [node("a", &member("c", true), false)];
        assert_eq!(summary(&next(&domain(1, Value::Null), down.iter())), "NotReady a=0:NotReady");
        let no_clique = [node("a", &member("", true), true), node("b", &member("", true), true)];
        assert_eq!(summary(&next(&domain(2, Value::Null), no_clique.iter())), "Ready a=-1:Ready b=-1:Ready");
    }

    #[test]
    fn nodes_beyond_the_limit_and_problems_are_reported() {
        let mut nodes: Vec<Value> = (0..19).map(|n| node(&format!("n{n:02}"), &member("c", true), true)).collect();
        let next_ = next(&domain(0, Value::Null), nodes.iter());
        assert_eq!(next_.status["nodes"].as_array().unwrap().len(), 18);
        assert_eq!(next_.problems, ["n18: the domain already has 18 nodes of clique c"]);
        let problem = Member { problem: "nvidia-imex is missing".into(), ..member("c", false) };
        nodes = vec![node("a", &problem, true)];
        assert_eq!(next(&domain(0, Value::Null), nodes.iter()).problems, ["a: nvidia-imex is missing"]);
        let other = Member { domain: "d2".into(), ..member("c", true) };
        assert_eq!(summary(&next(&domain(0, Value::Null), [node("a", &other, true)].iter())), "Ready");
    }
}
