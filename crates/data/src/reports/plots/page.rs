//! The page with all plots: one file that loads nothing from elsewhere.

use std::fmt::Write;

use super::chart::{draw, escape};
use super::template::COLORS;
use super::{Content, Picture, Plots, Series};
use crate::error::DataError;

const STYLE: &str = "
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1c2230; --soft: #5b6472; --line: #dfe3e8; --cell: #4a5bd4 }
@media (prefers-color-scheme: dark) { :root { --page: #12151b; --card: #1b2029; --text: #e6e9ef; --soft: #9aa4b2; --line: #323a46; --cell: #8b9bff } }
* { box-sizing: border-box }
body { margin: 0; padding: 24px clamp(12px, 3vw, 40px); background: var(--page); color: var(--text); font: 15px/1.45 system-ui, sans-serif }
h1 { margin: 0 0 4px; font-size: 22px }
header p { margin: 0 0 20px; color: var(--soft) }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 16px; align-items: start }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; min-width: 0 }
h2 { margin: 0 0 8px; font-size: 16px; overflow-wrap: anywhere }
svg { display: block; width: 100%; height: auto }
.grid { stroke: var(--line) } .axis { stroke: var(--soft) }
.tick { fill: var(--soft); font-size: 12px } .label { fill: var(--text); font-size: 13px } .tick.on { fill: var(--card) }
.line { fill: none; stroke-width: 2; stroke-linejoin: round } .cell { fill: var(--cell) }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 8px 0 0; padding: 0; color: var(--soft); font-size: 13px }
.legend svg { display: inline-block; width: 26px; height: 10px; margin-right: 6px } .legend li { overflow-wrap: anywhere }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 180px), 1fr)); gap: 12px }
figure { margin: 0 } figcaption { color: var(--soft); font-size: 13px; margin-bottom: 4px; overflow-wrap: anywhere }
img { display: block; max-width: 100%; border-radius: 4px; background: #fff }
.failures { grid-column: 1 / -1; border-color: #c0392b } .failures li { overflow-wrap: anywhere }
";

/// The place of the plots in a template.
const PLACE: &str = "{plot_divs}";
/// Places for what DVC's pages load, which these do not need.
const UNUSED: [&str; 2] = ["{scripts}", "{refresh_tag}"];

/// The page with the plots of a project.
pub fn page(plots: &Plots, title: &str, revisions: &[String]) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n<title>{title}: plots</title>\n<style>{}</style>\n</head>\n<body>\n<header><h1>{title}</h1><p>{}</p></header>\n<main>\n{}</main>\n</body>\n</html>\n",
        style(),
        escape(&revisions.join(" · ")),
        sections(plots)
    )
}

/// The plots in a page of the user, at the place `{plot_divs}`.
///
/// # Errors
/// [`DataError::Invalid`] if the page has no such place.
pub fn page_in(template: &str, plots: &Plots) -> Result<String, DataError> {
    if !template.contains(PLACE) {
        return Err(DataError::Invalid(format!("the HTML template has no '{PLACE}', where the plots would be")));
    }
    let rest = UNUSED.iter().fold(template.to_owned(), |text, name| text.replace(name, ""));
    Ok(rest.replacen(PLACE, &format!("<style>{}</style>\n<main>\n{}</main>\n", style(), sections(plots)), 1))
}

fn style() -> String {
    let color = |(i, color): (usize, &&str)| {
        format!(".line.c{i} {{ stroke: {color} }} .mark.c{i}, .bar.c{i} {{ fill: {color} }}\n")
    };
    format!("{STYLE}{}", COLORS.iter().enumerate().map(color).collect::<String>())
}

/// The plots, and what could not be shown.
fn sections(plots: &Plots) -> String {
    let mut body = String::new();
    for (id, content) in &plots.plots {
        body.push_str(&match content {
            Content::Series(series) => chart(series),
            Content::Pictures(pictures) => gallery(id, pictures),
        });
    }
    if !plots.failures.is_empty() {
        body.push_str("<section class=\"failures\"><h2>Not shown</h2><ul>");
        for failure in &plots.failures {
            let plot = failure.plot.as_deref().unwrap_or("all plots");
            let text = format!("{plot} in {}: {}", failure.revision, failure.failure.message);
            let _ = write!(body, "<li>{}</li>", escape(&text)); // A String takes any text.
        }
        body.push_str("</ul></section>\n");
    }
    body
}

/// A plot as a picture, for a page of another program.
#[derive(Debug, Clone)]
pub struct Figure {
    /// The title.
    pub title: String,
    /// A document in SVG with its own colours, one of which fits light, the other dark pages.
    pub svg: [String; 2],
    /// The names of the groups, each with its colour and dashes.
    pub legend: Vec<(String, &'static str, &'static str)>,
}

/// The plots with points as pictures.
pub fn figures(plots: &Plots) -> Vec<Figure> {
    let figure = |series: &Series| {
        let (drawing, legend) = draw(series);
        let legend = legend
            .into_iter()
            .map(|entry| (entry.name, COLORS[entry.color % COLORS.len()], entry.dash.unwrap_or_default()))
            .collect();
        let colored = |[text, soft, line, card]: [&str; 4]| {
            let marks: String = COLORS
                .iter()
                .enumerate()
                .map(|(i, color)| format!(".line.c{i}{{stroke:{color}}}.mark.c{i},.bar.c{i}{{fill:{color}}}"))
                .collect();
            let style = format!(
                "<style>svg{{font-family:system-ui,sans-serif}}.grid{{stroke:{line}}}.axis{{stroke:{soft}}}.tick{{fill:{soft};font-size:12px}}.label{{fill:{text};font-size:13px}}.tick.on{{fill:{card}}}.line{{fill:none;stroke-width:2;stroke-linejoin:round}}.cell{{fill:#4a5bd4}}{marks}</style>"
            );
            drawing.replacen('>', &format!(">{style}"), 1)
        };
        Figure {
            title: series.title.clone(),
            svg: [
                colored(["#1c2230", "#5b6472", "#dfe3e8", "#fff"]),
                colored(["#e6e9ef", "#9aa4b2", "#323a46", "#1b2029"]),
            ],
            legend,
        }
    };
    let series = plots.plots.iter().filter_map(|(_, content)| match content {
        Content::Series(series) => Some(figure(series)),
        Content::Pictures(_) => None,
    });
    series.collect()
}

fn chart(series: &Series) -> String {
    let (svg, legend) = draw(series);
    let entry = |entry: &super::chart::LegendEntry| {
        let dash = entry.dash.unwrap_or_default();
        format!(
            "<li><svg viewBox=\"0 0 26 10\" aria-hidden=\"true\"><line class=\"line c{}\" stroke-dasharray=\"{dash}\" x1=\"0\" x2=\"26\" y1=\"5\" y2=\"5\"/></svg>{}</li>",
            entry.color % COLORS.len(),
            escape(&entry.name)
        )
    };
    let legend = match legend.is_empty() {
        true => String::new(),
        false => format!("<ul class=\"legend\">{}</ul>\n", legend.iter().map(entry).collect::<String>()),
    };
    format!("<section><h2>{}</h2>\n{svg}{legend}</section>\n", escape(&series.title))
}

fn gallery(id: &str, pictures: &[Picture]) -> String {
    let picture = |picture: &Picture| {
        let alt = escape(&format!("{} in {}", picture.path, picture.revision));
        format!(
            "<figure><figcaption>{}</figcaption><img alt=\"{alt}\" src=\"{}\"></figure>\n",
            escape(&picture.revision),
            escape(&picture.data_url())
        )
    };
    let pictures: String = pictures.iter().map(picture).collect();
    format!("<section><h2>{}</h2>\n<div class=\"pictures\">{pictures}</div></section>\n", escape(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_loads_nothing_and_escapes_names() {
        let picture = Picture { revision: "<r>".into(), path: "a\"b.svg".into(), bytes: b"<svg/>".to_vec() };
        let plots = Plots { plots: vec![("<p>".into(), Content::Pictures(vec![picture]))], failures: Vec::new() };
        let text = page(&plots, "project & co", &["HEAD".into()]);
        assert!(text.contains("project &amp; co") && text.contains("&lt;r&gt;") && text.contains("&lt;p&gt;"));
        assert!(text.contains("data:image/svg+xml;base64,PHN2Zy8+"));
        assert!(!text.contains("<p>p") && !text.contains("http://") && !text.contains("https://"), "{text}");
    }
}
