//! Ids that follow from what they name, so that whoever creates an object twice creates one.

use ring::digest::{SHA256, digest};
use uuid::{Builder, Uuid};

use crate::model::TaskPath;

/// A random id.
pub(super) fn random() -> String {
    Uuid::new_v4().to_string()
}

/// The id that follows from these parts.
fn derived(kind: &str, owner: &str, name: &str) -> String {
    let hash = digest(&SHA256, format!("{kind}\0{owner}\0{name}").as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.as_ref()[..16]);
    Builder::from_custom_bytes(bytes).into_uuid().to_string()
}

/// The id of the run that a recurring run starts for a slot.
pub(super) fn scheduled_run_id(recurring_run_id: &str, slot: i64) -> String {
    derived("run", recurring_run_id, &slot.to_string())
}

/// The id of a task in the API.
pub fn task_id(run_id: &str, path: &TaskPath) -> String {
    derived("task", run_id, &path.0)
}

/// The name of a run as a resource: unique, and valid as a name in Kubernetes.
pub(super) fn resource_name(pipeline_name: &str, run_id: &str) -> String {
    let name: String = pipeline_name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(40)
        .collect();
    let id: String = run_id.chars().filter(char::is_ascii_hexdigit).take(12).collect();
    let name = name.trim_matches('-');
    // A name begins with a letter; an id may not.
    if name.starts_with(|c: char| c.is_ascii_lowercase()) { format!("{name}-{id}") } else { format!("run-{id}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_ids_depend_on_each_part() {
        let path = |text: &str| TaskPath(text.into());
        assert_eq!(task_id("r", &path("a/b")), task_id("r", &path("a/b")));
        assert_ne!(task_id("r", &path("a/b")), task_id("r", &path("a/c")));
        assert_ne!(scheduled_run_id("r", 1), scheduled_run_id("r", 2));
        assert!(Uuid::parse_str(&scheduled_run_id("r", 1)).is_ok());
    }

    #[test]
    fn resource_names_are_valid_in_kubernetes() {
        let id = "123e4567-e89b-12d3-a456-426614174000";
        assert_eq!(resource_name("My.Pipeline", id), "my-pipeline-123e4567e89b");
        assert_eq!(resource_name("1st", id), "run-123e4567e89b");
        assert!(resource_name(&"x".repeat(200), id).len() <= 63);
    }
}
