//! Each kind of resource: when it is so, how it is made so, and how that is taken back.

pub(crate) mod apt;
pub(crate) mod edit;
pub(crate) mod file;
pub(crate) mod service;
pub(crate) mod snap;

/// Differences of two texts as `-` and `+` lines with two lines around them; no more than fits a screen.
pub(crate) fn diff(old: &str, new: &str) -> String {
    const MOST_LINES: usize = 60;
    let diff = similar::TextDiff::from_lines(old, new);
    let text = diff.unified_diff().context_radius(2).to_string();
    let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with("@@") && !l.starts_with("\\ ")).collect();
    let mut shown = lines.iter().take(MOST_LINES).copied().collect::<Vec<_>>().join("\n");
    if lines.len() > MOST_LINES {
        shown += &format!("\n... {} more lines", lines.len() - MOST_LINES);
    }
    shown
}
