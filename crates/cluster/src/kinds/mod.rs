//! The kinds of resources. Each module compares a resource with the facts (`check`), applies it (`apply`) and undoes it (`undo`).

pub(crate) mod apt;
pub(crate) mod edit;
pub(crate) mod file;
pub(crate) mod service;
pub(crate) mod snap;

/// Unified diff of two texts with two lines of context, cut to what fits on a screen.
pub(crate) fn diff(old: &str, new: &str) -> String {
    const MAX_LINES: usize = 60;
    let diff = similar::TextDiff::from_lines(old, new);
    let text = diff.unified_diff().context_radius(2).to_string();
    let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with("@@") && !l.starts_with("\\ ")).collect();
    let mut shown = lines.iter().take(MAX_LINES).copied().collect::<Vec<_>>().join("\n");
    if lines.len() > MAX_LINES {
        shown += &format!("\n... {} more lines", lines.len() - MAX_LINES);
    }
    shown
}
