//! Renders a report as a self-contained HTML page: the steps over time with their dependencies, the smoke tests, and a table of all steps.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Outcome, Report, StepReport};

// All sizes are in pixels.
const ROW_HEIGHT: f64 = 34.0;
const NAME_WIDTH: f64 = 190.0;
const WIDTH: f64 = 960.0;
const BAR_HEIGHT: f64 = 16.0;

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Position of a step's bar: left and right end, and vertical center.
struct Bar {
    left: f64,
    right: f64,
    y: f64,
}

/// Draws the steps over time as SVG, one row each, with lines from their dependencies.
pub fn graph(report: &Report) -> String {
    let mut steps: Vec<&StepReport> = report.steps.iter().collect();
    steps.sort_by(|a, b| a.began.total_cmp(&b.began));
    let end = report.seconds.max(0.1);
    let x = |seconds: f64| NAME_WIDTH + (WIDTH - NAME_WIDTH - 80.0) * (seconds / end).clamp(0.0, 1.0);
    let bars: BTreeMap<&str, Bar> = steps
        .iter()
        .enumerate()
        .map(|(row, s)| {
            let (left, y) = (x(s.began), ROW_HEIGHT * row as f64 + ROW_HEIGHT / 2.0);
            (s.step.as_str(), Bar { left, right: x(s.began + s.seconds).max(left + 3.0), y })
        })
        .collect();
    let height = ROW_HEIGHT * steps.len() as f64 + 8.0;
    let mut out = format!(
        "<svg class=\"graph\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" role=\"img\" aria-label=\"Steps over time\">"
    );
    for step in &steps {
        let Some(to) = bars.get(step.step.as_str()) else { continue };
        for from in step.needs.iter().filter_map(|n| bars.get(n.as_str())) {
            let bend = from.right + 8.0;
            let _ = write!(
                out,
                "<path class=\"need\" d=\"M{:.1} {:.1} C{bend:.1} {:.1} {:.1} {:.1} {:.1} {:.1}\"/>",
                from.right,
                from.y,
                from.y,
                to.left - 8.0,
                to.y,
                to.left,
                to.y
            );
        }
    }
    for step in steps {
        let Some(bar) = bars.get(step.step.as_str()) else { continue };
        let (word, details) = step.outcome.words();
        let _ = write!(
            out,
            "<g class=\"{word}\"><title>{}: {word} {}</title><text x=\"0\" y=\"{:.1}\">{}</text><rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" \
             height=\"{BAR_HEIGHT}\" rx=\"3\"/><text class=\"time\" x=\"{:.1}\" y=\"{:.1}\">{:.1} s</text></g>",
            escape(&step.step),
            escape(&details),
            bar.y + 4.0,
            escape(&step.step),
            bar.left,
            bar.y - BAR_HEIGHT / 2.0,
            bar.right - bar.left,
            bar.right + 6.0,
            bar.y + 4.0,
            step.seconds
        );
    }
    out + "</svg>"
}

const STYLE: &str = ":root{color-scheme:light dark;--ink:#1c2733;--soft:#5b6b7b;--paper:#fff;--line:#d5dde5;--same:#9fb0c0;--done:#2f7fd1;\
--good:#2b9a5b;--bad:#cf3e3e}@media(prefers-color-scheme:dark){:root{--ink:#e4ebf2;--soft:#9aabbc;--paper:#141a21;--line:#2c3742;\
--same:#5a6b7c;--done:#5aa6f0;--good:#4cc282;--bad:#f07070}}body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);\
margin:0 auto;padding:24px 16px;max-width:960px}h1{font-size:22px;margin:0}h2{font-size:17px;margin:28px 0 8px}p{color:var(--soft);margin:4px 0}\
.scroll{overflow-x:auto}.graph{max-width:none;font-size:13px}.graph text{fill:var(--ink)}.graph .time{fill:var(--soft);font-size:12px}\
.graph .need{fill:none;stroke:var(--line);stroke-width:1.5}.unchanged rect,.waiting rect{fill:var(--same)}.changed rect,.running rect{fill:var(--done)}.passed rect{fill:var(--good)}\
.failed rect,.skipped rect{fill:var(--bad)}table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:6px 10px 6px 0;\
border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}th{color:var(--soft);font-weight:500}td.passed{color:var(--good)}\
td.failed,td.skipped{color:var(--bad)}td.changed{color:var(--done)}";

fn table(out: &mut String, steps: &[&StepReport]) {
    out.push_str("<div class=\"scroll\"><table><tr><th>Step</th><th>Outcome</th><th>Seconds</th><th>Details</th></tr>");
    for step in steps {
        let (word, details) = step.outcome.words();
        let _ = write!(
            out,
            "<tr><td>{}</td><td class=\"{word}\">{word}</td><td>{:.1}</td><td>{}</td></tr>",
            escape(&step.step),
            step.seconds,
            escape(&details)
        );
    }
    out.push_str("</table></div>");
}

/// Renders the page. It contains no scripts, and all text from the report is escaped.
pub fn page(report: &Report) -> String {
    let when = report.change.parse().map(slipway_core::clock::rfc3339).unwrap_or_default();
    let failed = report.steps.iter().filter(|s| !s.outcome.succeeded()).count();
    let verdict = match (failed, report.changed()) {
        (0, 0) => "All steps succeeded, nothing was changed.".to_owned(),
        (0, 1) => "All steps succeeded, 1 change.".into(),
        (0, n) => format!("All steps succeeded, {n} changes."),
        (n, _) => format!("{n} of {} steps failed or were skipped.", report.steps.len()),
    };
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{name}: {verb}</title><style>{STYLE}</style></head><body><h1>{name}: {verb}</h1><p>{when}, {:.1} s. {verdict}</p>\
         <h2>Steps over time</h2><div class=\"scroll\">{}</div>",
        report.seconds,
        graph(report),
        name = escape(&report.cluster),
        verb = escape(&report.verb),
    );
    let (tests, steps): (Vec<&StepReport>, Vec<&StepReport>) =
        report.steps.iter().partition(|s| s.step.contains("/smoke-") || matches!(s.outcome, Outcome::Passed { .. }));
    if !tests.is_empty() {
        out += "<h2>Smoke tests</h2>";
        table(&mut out, &tests);
    }
    out += "<h2>Steps</h2>";
    table(&mut out, &steps);
    out + "</body></html>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_shows_every_step_and_escapes_html() {
        let step = |name: &str, needs: &[&str], outcome| StepReport {
            step: name.into(),
            host: "cp1".into(),
            needs: needs.iter().map(|n| (*n).to_owned()).collect(),
            outcome,
            began: 0.0,
            seconds: 1.0,
        };
        let failed = Outcome::Failed { reason: "<script>alert(1)</script>".into() };
        let report = Report {
            cluster: "lab".into(),
            verb: "apply".into(),
            change: "0000000000000".into(),
            steps: vec![step("cp1/base", &[], Outcome::Unchanged), step("cp1/smoke-dns", &["cp1/base"], failed)],
            seconds: 2.0,
        };
        let page = page(&report);
        assert!(page.contains("Smoke tests") && page.contains("cp1/base") && page.contains("class=\"need\""));
        assert!(page.contains("1 of 2 steps failed") && !page.contains("<script>"));
    }
}
