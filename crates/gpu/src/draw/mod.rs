//! Diagrams as SVG: topology, MIG slices, roofline. Colours follow the viewer's light or dark colour scheme.

mod roofline;
mod slices;
mod topology;

use std::fmt::Write;

pub use roofline::{roofline, terminal};
pub use slices::{slices, slices_text};
pub use topology::topology;

/// An SVG document under construction.
struct Svg {
    text: String,
}

/// Escapes text for XML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

impl Svg {
    /// Starts a document of this size; `title` is its accessible name for screen readers.
    fn new(width: f64, height: f64, title: &str) -> Self {
        let mut svg = Self { text: String::new() };
        svg.add(format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" font-family=\"system-ui, sans-serif\" font-size=\"12\"><title>{}</title>",
            escape(title)
        ));
        svg.add(format_args!(
            "<style>:root{{color-scheme:light dark}}.ink{{fill:light-dark(#1b2430,#e6e9ee)}}.dim{{fill:light-dark(#667085,#98a2b3)}}.rule{{stroke:light-dark(#d0d5dd,#475467)}}.box{{fill:light-dark(#f2f4f7,#1d2939);stroke:light-dark(#98a2b3,#667085)}}</style>"
        ));
        svg
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.text.write_fmt(element);
        self.text.push('\n');
    }

    fn label(&mut self, x: f64, y: f64, anchor: &str, class: &str, text: &str) {
        self.add(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" class=\"{class}\">{}</text>",
            escape(text)
        ));
    }

    fn finish(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }
}

/// A colour-blind-safe palette that works on light and dark backgrounds (Okabe and Ito 2008).
const COLOURS: [&str; 7] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999933"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let bad = "</text><script>alert(1)</script>&\"";
        let mut svg = Svg::new(1.0, 1.0, bad);
        svg.label(0.0, 0.0, "end", "ink", bad);
        let text = svg.finish();
        assert!(!text.contains("<script") && text.matches("&lt;script&gt;").count() == 2, "{text}");
        assert_eq!(text.matches("</text>").count(), 1, "{text}");
    }
}
