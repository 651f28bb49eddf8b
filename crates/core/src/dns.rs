//! The form of DNS names, which names of Kubernetes' objects have (RFC 1123, section 2.1; Kubernetes, "Object Names and IDs").

/// Maximum bytes of a label.
pub const MAX_LABEL: usize = 63;
/// Maximum bytes of a subdomain: labels, separated by dots.
pub const MAX_SUBDOMAIN: usize = 253;

/// Whether a text consists of lowercase letters, digits and `-`, and begins and ends with a letter or digit. Its length is not checked, because
/// Kubernetes limits that of a whole subdomain only.
pub fn is_label(text: &str) -> bool {
    let is_inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.bytes().all(is_inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Whether a text can be the name of most objects of Kubernetes: a subdomain of at most [`MAX_SUBDOMAIN`] bytes.
pub fn is_subdomain(text: &str) -> bool {
    text.len() <= MAX_SUBDOMAIN && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_subdomains_have_their_form() {
        for text in ["a", "0", "a-b", "a0"] {
            assert!(is_label(text) && is_subdomain(text), "{text}");
        }
        for text in ["", "-a", "a-", "A", "a_b", "a/b", "ä"] {
            assert!(!is_label(text) && !is_subdomain(text), "{text}");
        }
        assert!(is_subdomain("a.b-c.0") && !is_label("a.b"));
        assert!(!is_subdomain("a..b") && !is_subdomain(".a") && !is_subdomain(&"a".repeat(254)));
    }
}
