//! Publishes the state of acceptance on the Node object: a taint while the node is not accepted, a label, and a condition.

use serde_json::{Value, json};
use slipway_gpu::accept::check::Level;

use crate::cluster::{Cluster, ClusterError, NODE};

/// Key of the taint that keeps pods away until the node has passed. Its value is `pending`, `testing` or `failed`.
pub const TAINT: &str = "slipway.dev/not-accepted";
/// The label with the level that the node has passed, or `failed`.
pub const LABEL: &str = "slipway.dev/accepted";
/// Type of the node condition.
pub const CONDITION: &str = "slipway.dev/Accepted";
const LABEL_MANAGER: &str = "slipway-acceptance";
const STATUS_MANAGER: &str = "slipway-acceptance-status";

/// The state of acceptance.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // the comments of the variants describe their fields
pub enum Phase {
    /// The checks have yet to run, for this reason; or they wait for it.
    Pending(String),
    /// The checks run. `accepted` is the level that the node had passed before.
    Testing { accepted: Option<Level> },
    /// The node has passed this level, and since when.
    Accepted { level: Level, message: String },
    /// The node has failed, for this reason.
    Failed(String),
}

impl Phase {
    /// The value of the taint; `None` if the node has none.
    pub fn taint(&self) -> Option<&'static str> {
        match self {
            Self::Pending(_) => Some("pending"),
            Self::Testing { .. } => Some("testing"),
            Self::Failed(_) => Some("failed"),
            Self::Accepted { .. } => None,
        }
    }

    fn label(&self) -> Option<String> {
        match self {
            Self::Accepted { level, .. } | Self::Testing { accepted: Some(level) } => Some(level.to_string()),
            Self::Failed(_) => Some("failed".into()),
            Self::Pending(_) | Self::Testing { accepted: None } => None,
        }
    }

    /// Status, reason and message of the condition.
    fn condition(&self) -> (&'static str, &'static str, String) {
        match self {
            Self::Pending(why) => ("Unknown", "Pending", why.clone()),
            Self::Testing { .. } => ("Unknown", "Testing", "the checks are running".into()),
            Self::Accepted { message, .. } => ("True", "Passed", message.clone()),
            Self::Failed(why) => ("False", "Failed", why.clone()),
        }
    }
}

/// The taints of a node with exactly this value of ours, or without ours; `None` if they are so already.
pub fn changed_taints(node: &Value, value: Option<&str>) -> Option<Vec<Value>> {
    let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let desired = value.map(|value| json!({"key": TAINT, "value": value, "effect": "NoSchedule"}));
    let ours: Vec<&Value> = taints.iter().filter(|t| t["key"] == TAINT).collect();
    let same =
        |taint: &Value, desired: &Value| ["value", "effect"].iter().all(|field| taint[*field] == desired[*field]);
    let is_desired = match (&desired, ours.as_slice()) {
        (None, []) => true,
        (Some(desired), [one]) => same(one, desired),
        _ => false,
    };
    if is_desired {
        return None;
    }
    Some(taints.into_iter().filter(|t| t["key"] != TAINT).chain(desired).collect())
}

/// Sets or removes the taint. The list of taints is atomic for server-side apply, which would remove the taints of others; so the list is
/// replaced under the condition that the node has not changed since it was read.
///
/// # Errors
/// An error of the API server; a conflict if somebody else changed the node at the same time.
pub async fn set_taint<C: Cluster>(cluster: &C, name: &str, value: Option<&str>) -> Result<(), ClusterError> {
    let node = cluster.get(NODE, None, name).await?;
    let node = node.ok_or_else(|| ClusterError::Refused { code: 404, message: format!("there is no node {name}") })?;
    let Some(taints) = changed_taints(&node, value) else { return Ok(()) };
    let version = &node["metadata"]["resourceVersion"];
    let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": taints}});
    cluster.merge(NODE, name, patch).await.map(drop)
}

/// Publishes taint, label and condition. The taint is first when it is set, and last when it is removed, so that no pod starts in between.
///
/// # Errors
/// The first error of the API server; publishing again continues.
pub async fn publish<C: Cluster>(cluster: &C, name: &str, phase: &Phase, since: &str) -> Result<(), ClusterError> {
    if phase.taint().is_some() {
        set_taint(cluster, name, phase.taint()).await?;
    }
    let labels = phase.label().map_or_else(|| json!({}), |value| json!({LABEL: value}));
    let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}});
    cluster.apply(NODE, name, LABEL_MANAGER, false, object).await?;
    let (status, reason, message) = phase.condition();
    let condition =
        json!({"type": CONDITION, "status": status, "reason": reason, "message": message, "lastTransitionTime": since});
    let object =
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {"conditions": [condition]}});
    cluster.apply(NODE, name, STATUS_MANAGER, true, object).await?;
    if phase.taint().is_none() {
        set_taint(cluster, name, None).await?;
    }
    Ok(())
}

/// Removes taint, label and condition from a node whose agent does not check it any more.
///
/// # Errors
/// An error of the API server.
pub async fn remove<C: Cluster>(cluster: &C, name: &str) -> Result<(), ClusterError> {
    let object = |rest: Value| {
        let mut object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        if let (Some(object), Value::Object(rest)) = (object.as_object_mut(), rest) {
            object.extend(rest);
        }
        object
    };
    cluster.apply(NODE, name, LABEL_MANAGER, false, object(json!({}))).await?;
    cluster.apply(NODE, name, STATUS_MANAGER, true, object(json!({"status": {}}))).await?;
    set_taint(cluster, name, None).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_of_others_are_kept() {
        let other = json!({"key": "nvidia.com/gpu", "effect": "NoSchedule"});
        let ours = |value: &str| json!({"key": TAINT, "value": value, "effect": "NoSchedule"});
        let node = |taints: Value| json!({"spec": {"taints": taints}});
        assert_eq!(changed_taints(&json!({"spec": {}}), None), None);
        assert_eq!(changed_taints(&json!({"spec": {}}), Some("pending")), Some(vec![ours("pending")]));
        let tainted = node(json!([other, ours("pending")]));
        assert_eq!(changed_taints(&tainted, Some("pending")), None);
        assert_eq!(changed_taints(&tainted, Some("failed")), Some(vec![other.clone(), ours("failed")]));
        assert_eq!(changed_taints(&tainted, None), Some(vec![other]));
        let evicting = node(json!([{"key": TAINT, "value": "failed", "effect": "NoExecute"}]));
        assert_eq!(changed_taints(&evicting, Some("failed")), Some(vec![ours("failed")]));
    }
}
