//! Valid names, labels, annotations and finalizers, worded as the API server words its errors.

use std::collections::BTreeMap;

use serde_json::json;
use slipway_core::dns::{self, MAX_LABEL, MAX_SUBDOMAIN};

use crate::error::FieldError;
use crate::meta::{FOREGROUND_FINALIZER, NAMESPACE_FINALIZER, ORPHAN_FINALIZER, ObjectMeta};

/// Maximum bytes of all annotations of an object together.
pub const MAX_ANNOTATION_BYTES: usize = 256 * 1024;
/// Maximum bytes of the name of a manager of fields.
const MAX_MANAGER: usize = 128;
/// Maximum bytes of the part of an object that a manager of fields writes.
const MAX_SUBRESOURCE: usize = 256;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and \
    end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an \
    alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character \
    (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and \
    end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
    '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  \
    or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

/// The form of an object's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameForm {
    /// A DNS subdomain.
    Subdomain,
    /// A DNS label.
    Label,
}

fn too_long(limit: usize) -> String {
    format!("must be no more than {limit} bytes")
}

fn is_qualified_part(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let ends = |c: Option<u8>| c.is_some_and(|b| b.is_ascii_alphanumeric());
    text.bytes().all(inner) && ends(text.bytes().next()) && ends(text.bytes().last())
}

fn subdomain_faults(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > MAX_SUBDOMAIN {
        faults.push(format!("must be no more than {MAX_SUBDOMAIN} characters"));
    }
    if !text.split('.').all(dns::is_label) {
        faults.push(SUBDOMAIN.into());
    }
    faults
}

/// What is wrong with a name of this form; empty if nothing is.
pub fn name_faults(form: NameForm, name: &str) -> Vec<String> {
    match form {
        NameForm::Subdomain => subdomain_faults(name),
        NameForm::Label => {
            let mut faults = Vec::new();
            if name.len() > MAX_LABEL {
                faults.push(too_long(MAX_LABEL));
            }
            if name.contains('.') && name.split('.').all(dns::is_label) {
                faults.push("must not contain dots".into());
            } else if !dns::is_label(name) {
                faults.push(LABEL.into());
            }
            faults
        }
    }
}

/// What is wrong with the key of a label or annotation, `NAME` or `PREFIX/NAME`.
pub fn key_faults(key: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let name = match key.split_once('/') {
        None => key,
        Some((_, name)) if name.contains('/') => {
            return vec![format!(
                "a valid label key {QUALIFIED} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
        Some((prefix, name)) => {
            if prefix.is_empty() {
                faults.push("prefix part must be non-empty".into());
            } else {
                faults.extend(subdomain_faults(prefix).into_iter().map(|fault| format!("prefix part {fault}")));
            }
            name
        }
    };
    if name.is_empty() {
        faults.push("name part must be non-empty".into());
    } else if name.len() > MAX_LABEL {
        faults.push(format!("name part {}", too_long(MAX_LABEL)));
    }
    if !is_qualified_part(name) {
        faults.push(format!("name part {QUALIFIED}"));
    }
    faults
}

/// What is wrong with the value of a label.
pub fn label_value_faults(value: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if value.len() > MAX_LABEL {
        faults.push(too_long(MAX_LABEL));
    }
    if !value.is_empty() && !is_qualified_part(value) {
        faults.push(LABEL_VALUE.into());
    }
    faults
}

/// What is wrong with a key in the data of a config map or secret.
pub fn config_key_faults(key: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if key.len() > MAX_SUBDOMAIN {
        faults.push(format!("must be no more than {MAX_SUBDOMAIN} characters"));
    }
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if key.is_empty() || !key.bytes().all(inner) {
        faults.push(CONFIG_KEY.into());
    }
    match key {
        "." => faults.push("must not be '.'".into()),
        ".." => faults.push("must not be '..'".into()),
        _ if key.starts_with("..") => faults.push("must not start with '..'".into()),
        _ => {}
    }
    faults
}

/// Checks the metadata of an object that is created or changed.
pub fn metadata_errors(meta: &ObjectMeta, form: NameForm) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if !meta.generate_name.is_empty() {
        // The server appends letters and digits, so a prefix may end with a dash.
        let prefix = meta.generate_name.strip_suffix('-').unwrap_or(&meta.generate_name);
        let value = json!(meta.generate_name);
        errors
            .extend(name_faults(form, prefix).iter().map(|f| FieldError::invalid("metadata.generateName", &value, f)));
    }
    if meta.name.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else {
        let value = json!(meta.name);
        errors.extend(name_faults(form, &meta.name).iter().map(|f| FieldError::invalid("metadata.name", &value, f)));
    }
    errors.extend(label_errors(&meta.labels, "metadata.labels"));
    for key in meta.annotations.keys() {
        // Annotations allow upper case in their keys' prefixes.
        let faults = key_faults(&key.to_lowercase());
        errors.extend(faults.iter().map(|f| FieldError::invalid("metadata.annotations", &json!(key), f)));
    }
    if meta.annotations.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() > MAX_ANNOTATION_BYTES {
        errors.push(FieldError::too_long("metadata.annotations", MAX_ANNOTATION_BYTES));
    }
    errors.extend(owner_errors(meta));
    for finalizer in &meta.finalizers {
        errors.extend(
            key_faults(finalizer).iter().map(|f| FieldError::invalid("metadata.finalizers", &json!(finalizer), f)),
        );
    }
    if meta.has_finalizer(ORPHAN_FINALIZER) && meta.has_finalizer(FOREGROUND_FINALIZER) {
        let detail = format!("finalizer {ORPHAN_FINALIZER} and {FOREGROUND_FINALIZER} cannot be both set");
        errors.push(FieldError::invalid("metadata.finalizers", &json!(meta.finalizers), detail));
    }
    for (i, entry) in meta.managed_fields.iter().flatten().enumerate() {
        let path = format!("metadata.managedFields[{i}]");
        errors.extend(manager_errors(&entry.manager, &format!("{path}.manager")));
        if entry.subresource.len() > MAX_SUBRESOURCE {
            errors.push(FieldError::too_long(format!("{path}.subresource"), MAX_SUBRESOURCE));
        }
    }
    errors
}

/// Checks the name of a manager of fields at a path.
pub fn manager_errors(manager: &str, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if manager.len() > MAX_MANAGER {
        errors.push(FieldError::too_long(path, MAX_MANAGER));
    }
    for (at, c) in manager.char_indices().filter(|(_, c)| !is_printable(*c)) {
        let detail = format!("invalid character U+{:04X} (at position {at})", u32::from(c));
        errors.push(FieldError::invalid(path, &json!(manager), detail));
    }
    errors
}

/// The manager of fields that stands for a program, from the header `User-Agent`: the printable characters before the first slash.
pub fn manager_of_user_agent(user_agent: &str) -> String {
    let mut manager = String::new();
    let name = user_agent.split('/').next().unwrap_or_default();
    for c in name.chars().filter(|c| is_printable(*c)) {
        if manager.len() + c.len_utf8() > MAX_MANAGER {
            break;
        }
        manager.push(c);
    }
    manager
}

/// Whether Go's `unicode.IsPrint` holds, but for characters that are not assigned.
fn is_printable(c: char) -> bool {
    c == ' '
        || !(c.is_control()
            || c.is_whitespace()
            || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{e000}'..='\u{f8ff}' | '\u{feff}'))
}

/// Checks that the finalizers of an object of the core group are those of Kubernetes, or have the domain of their controller.
pub fn finalizer_errors(finalizers: &[String], path: &str) -> Vec<FieldError> {
    let standard = [ORPHAN_FINALIZER, FOREGROUND_FINALIZER, NAMESPACE_FINALIZER];
    let detail = "name is neither a standard finalizer name nor is it fully qualified";
    let unqualified =
        |(_, finalizer): &(usize, &String)| !finalizer.contains('/') && !standard.contains(&finalizer.as_str());
    let found = finalizers.iter().enumerate().filter(unqualified);
    found.map(|(i, f)| FieldError::invalid(format!("{path}[{i}]"), &json!(f), detail)).collect()
}

/// Checks labels at a path.
pub fn label_errors(labels: &BTreeMap<String, String>, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels {
        errors.extend(key_faults(key).iter().map(|f| FieldError::invalid(path, &json!(key), f)));
        errors.extend(label_value_faults(value).iter().map(|f| FieldError::invalid(path, &json!(value), f)));
    }
    errors
}

fn owner_errors(meta: &ObjectMeta) -> Vec<FieldError> {
    let path = "metadata.ownerReferences";
    let mut errors = Vec::new();
    let mut controller: Option<String> = None;
    for owner in &meta.owner_references {
        let fields =
            [("apiVersion", &owner.api_version), ("kind", &owner.kind), ("name", &owner.name), ("uid", &owner.uid)];
        for (field, value) in fields.into_iter().filter(|(_, value)| value.is_empty()) {
            let detail = if field == "apiVersion" { "version must not be empty" } else { "must not be empty" };
            errors.push(FieldError::invalid(format!("{path}.{field}"), &json!(value), detail));
        }
        if owner.controller == Some(true) {
            let this = format!("{}/{}", owner.kind, owner.name);
            if let Some(first) = &controller {
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                );
                errors.push(FieldError::invalid(path, &json!(meta.owner_references), detail));
            }
            controller.get_or_insert(this);
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_rfc_1123() {
        for valid in ["a", "a-b", "a.b-c.1", &"a".repeat(253)] {
            assert!(name_faults(NameForm::Subdomain, valid).is_empty(), "{valid}");
        }
        for invalid in ["", "A", "a_b", "-a", "a-", "a..b", ".a", &"a".repeat(254)] {
            assert!(!name_faults(NameForm::Subdomain, invalid).is_empty(), "{invalid}");
        }
        assert!(!name_faults(NameForm::Label, "a.b").is_empty());
        assert!(!name_faults(NameForm::Label, &"a".repeat(64)).is_empty());
    }

    #[test]
    fn label_keys_and_values_are_limited() {
        for valid in ["a", "example.com/a", "A_b.c", "kubernetes.io/name"] {
            assert!(key_faults(valid).is_empty(), "{valid}");
        }
        for invalid in ["", "/a", "a/", "a/b/c", "-a", "Example.com/a", &"a".repeat(64)] {
            assert!(!key_faults(invalid).is_empty(), "{invalid}");
        }
        assert!(label_value_faults("").is_empty());
        assert!(!label_value_faults("a b").is_empty());
        assert!(!config_key_faults("..a").is_empty());
        assert!(config_key_faults("a.txt").is_empty());
    }

    #[test]
    fn annotations_are_limited_together() {
        let mut meta = ObjectMeta { name: "a".into(), ..ObjectMeta::default() };
        meta.annotations.insert("k".into(), "v".repeat(MAX_ANNOTATION_BYTES - 1));
        assert_eq!(metadata_errors(&meta, NameForm::Subdomain), []);
        meta.annotations.insert("l".into(), String::new());
        assert_eq!(metadata_errors(&meta, NameForm::Subdomain)[0].reason, "FieldValueTooLong");
    }
}
