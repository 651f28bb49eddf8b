//! Differences of texts, line by line. One function serves all crates, because every use of the library is compiled anew.

/// The unified diff of two texts with `context` unchanged lines around each change, and with `name` as the header of both sides.
pub fn unified(before: &str, after: &str, context: usize, name: Option<&str>) -> String {
    let diff = similar::TextDiff::from_lines(before, after);
    let mut unified = diff.unified_diff();
    unified.context_radius(context);
    if let Some(name) = name {
        unified.header(name, name);
    }
    unified.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_have_context_and_a_header() {
        let (before, after) = ("a\nb\nc\nd\n", "a\nb\nX\nd\n");
        assert_eq!(unified(before, after, 1, None), "@@ -2,3 +2,3 @@\n b\n-c\n+X\n d\n");
        assert!(unified(before, after, 1, Some("f")).starts_with("--- f\n+++ f\n@@"));
        assert_eq!(unified(before, before, 1, None), "");
    }
}
