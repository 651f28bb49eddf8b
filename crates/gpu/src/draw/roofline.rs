//! Roofline diagrams: performance over intensity, with logarithmic axes.

use super::{COLOURS, Svg};
use crate::roofline::{Place, Roofline};

/// Axis ranges: `x` is intensity in operations per byte, `y` is performance in 10^12 operations per second.
struct Axes {
    x: (f64, f64),
    y: (f64, f64),
}

fn axes(roof: &Roofline, places: &[Place]) -> Axes {
    let top = roof.compute.iter().map(|c| c.tera).fold(0.001, f64::max) * 2.0;
    let slowest = roof.memory.iter().map(|m| m.gigabytes / 1000.0).fold(f64::INFINITY, f64::min);
    let ridge = top / slowest.max(1e-6);
    let intensities = || places.iter().map(|p| p.intensity);
    let low = intensities().fold(0.25, f64::min) / 2.0;
    let high = intensities().fold(ridge, f64::max) * 2.0;
    Axes { x: (low, high), y: (low * slowest, top) }
}

fn decades((low, high): (f64, f64)) -> impl Iterator<Item = f64> {
    (low.log10().ceil() as i32..=high.log10().floor() as i32).map(|e| 10f64.powi(e))
}

fn number(n: f64) -> String {
    if n >= 1.0 { format!("{n:.0}") } else { format!("{n}") }
}

/// Draws a roofline and the positions of workloads as SVG.
pub fn roofline(roof: &Roofline, places: &[Place]) -> String {
    let (width, height) = (760.0, 460.0);
    let (left, right, top, bottom) = (64.0, 740.0, 44.0, 408.0);
    let axes = axes(roof, places);
    let x = |v: f64| left + (right - left) * (v / axes.x.0).log10() / (axes.x.1 / axes.x.0).log10();
    let y = |v: f64| bottom - (bottom - top) * (v / axes.y.0).log10() / (axes.y.1 / axes.y.0).log10();
    let kind = if roof.measured { "measured" } else { "theoretical" };
    let mut svg = Svg::new(width, height, &format!("Roofline of {}, {kind}", roof.machine));
    svg.label(left, 20.0, "start", "ink", &format!("{}, {kind}", roof.machine));
    for v in decades(axes.x) {
        svg.add(format_args!(
            "<line x1=\"{0:.1}\" y1=\"{top}\" x2=\"{0:.1}\" y2=\"{bottom}\" class=\"rule\" stroke-width=\"0.5\"/>",
            x(v)
        ));
        svg.label(x(v), bottom + 16.0, "middle", "dim", &number(v));
    }
    for v in decades(axes.y) {
        svg.add(format_args!(
            "<line x1=\"{left}\" y1=\"{0:.1}\" x2=\"{right}\" y2=\"{0:.1}\" class=\"rule\" stroke-width=\"0.5\"/>",
            y(v)
        ));
        svg.label(left - 6.0, y(v) + 4.0, "end", "dim", &number(v));
    }
    svg.label((left + right) / 2.0, height - 10.0, "middle", "dim", "operations per byte");
    svg.label(8.0, top - 10.0, "start", "dim", "TFLOP/s");
    let fastest = roof.compute.iter().map(|c| c.tera).fold(0.0, f64::max);
    for (i, memory) in roof.memory.iter().enumerate() {
        let rate = memory.gigabytes / 1000.0;
        let end = (fastest / rate).min(axes.x.1);
        let colour = COLOURS[i % COLOURS.len()];
        let start = axes.x.0.max(axes.y.0 / rate);
        svg.add(format_args!(
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            x(start),
            y(start * rate),
            x(end),
            y(end * rate)
        ));
        // Labels go to the right of the line, each memory level at a different height.
        let v = axes.y.0 * (axes.y.1 / axes.y.0).powf(0.2 + 0.1 * i as f64);
        let label = format!("{} {:.0} GB/s", memory.level, memory.gigabytes);
        svg.label(x((v / rate).max(start)) + 10.0, y(v.max(start * rate)) + 12.0, "start", "ink", &label);
    }
    let main = roof.main_memory().map_or(1.0, |m| m.gigabytes / 1000.0);
    let mut by_rate = roof.compute.clone();
    by_rate.sort_by(|a, b| a.tera.total_cmp(&b.tera));
    // Formats with the same rate share one number. Ceilings too close for separate labels share one label above the highest.
    let mut texts: Vec<(f64, String)> = Vec::new();
    for (i, c) in by_rate.iter().enumerate() {
        let start = (c.tera / main).max(axes.x.0);
        svg.add(format_args!(
            "<line x1=\"{:.1}\" y1=\"{1:.1}\" x2=\"{right}\" y2=\"{1:.1}\" stroke=\"{2}\" stroke-width=\"1.5\"/>",
            x(start),
            y(c.tera),
            COLOURS[0]
        ));
        let same_next = by_rate.get(i + 1).is_some_and(|n| n.tera / c.tera < 1.02);
        let number = if c.tera >= 10.0 { format!("{:.0}", c.tera) } else { format!("{:.2}", c.tera) };
        let text = if same_next { c.precision.to_string() } else { format!("{} {number}", c.precision) };
        match texts.last_mut().filter(|(lower, _)| y(*lower) - y(c.tera) < 13.0) {
            Some((at, all)) => {
                *at = c.tera;
                all.push_str(&format!(
                    "{}{text}",
                    if all.ends_with(|e: char| e.is_ascii_digit()) && all.contains(' ') { ", " } else { " " }
                ));
            }
            None => texts.push((c.tera, text)),
        }
    }
    for (tera, text) in &texts {
        svg.label(right, y(*tera) - 3.0, "end", "ink", text);
    }
    for (i, place) in places.iter().enumerate() {
        let (px, py) = (x(place.intensity), y(place.attainable.max(axes.y.0)));
        svg.add(format_args!(
            "<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"5\" fill=\"{}\"><title>{}</title></circle>",
            COLOURS[5 - i % 5],
            super::escape(&place.work.name)
        ));
        let (anchor, dx) = if px > (left + right) / 2.0 { ("end", -9.0) } else { ("start", 9.0) };
        svg.label(px + dx, py + 14.0, anchor, "ink", &place.work.name);
    }
    svg.finish()
}

/// Draws the main memory's ceiling and the highest compute ceiling as text for terminals, with workloads as letters.
pub fn terminal(roof: &Roofline, places: &[Place]) -> String {
    const COLUMNS: usize = 64;
    const ROWS: usize = 16;
    let axes = axes(roof, places);
    let main = roof.main_memory().map_or(0.0, |m| m.gigabytes / 1000.0);
    let fastest = roof.compute.iter().map(|c| c.tera).fold(0.0, f64::max);
    let row = |v: f64| {
        let part = (v / axes.y.0).log10() / (axes.y.1 / axes.y.0).log10();
        ROWS - 1 - (part.clamp(0.0, 1.0) * (ROWS - 1) as f64).round() as usize
    };
    let column = |v: f64| {
        ((v / axes.x.0).log10() / (axes.x.1 / axes.x.0).log10() * (COLUMNS - 1) as f64)
            .round()
            .clamp(0.0, (COLUMNS - 1) as f64) as usize
    };
    let mut grid = vec![vec![' '; COLUMNS]; ROWS];
    let edge = |c: usize| {
        let intensity = axes.x.0 * (axes.x.1 / axes.x.0).powf(c as f64 / (COLUMNS - 1) as f64);
        fastest.min(intensity * main)
    };
    for (c, roof_here) in (0..COLUMNS).map(edge).enumerate() {
        grid[row(roof_here)][c] = if roof_here < fastest { '/' } else { '_' };
    }
    let mut legend = String::new();
    for (letter, place) in ('A'..='Z').zip(places) {
        grid[row(place.attainable)][column(place.intensity)] = letter;
        legend.push_str(&format!("  {letter}  {}\n", place.work.name));
    }
    let mut text = String::new();
    for (r, line) in grid.iter().enumerate() {
        let label = if r == row(fastest) { format!("{fastest:>9.1} ") } else { " ".repeat(10) };
        text.push_str(&format!("{label}|{}\n", line.iter().collect::<String>().trim_end()));
    }
    text.push_str(&format!(
        "{}+{}\n{:>11}{:<32}{:>31}\n",
        " ".repeat(10),
        "-".repeat(COLUMNS),
        "",
        number_short(axes.x.0),
        format!("{} operations per byte", number_short(axes.x.1))
    ));
    text + &legend
}

fn number_short(n: f64) -> String {
    if n >= 10.0 { format!("{n:.0}") } else { format!("{n:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sheet;
    use crate::work::Work;

    #[test]
    fn ceilings_and_workloads_are_drawn() {
        let roof = Roofline::from_card(&sheet::find("H100 80GB HBM3").unwrap());
        let places: Vec<Place> = ["gemm:4096,4096,4096,bf16", "decode:model=7b,batch=1"]
            .iter()
            .map(|t| roof.place(&Work::parse(t).unwrap()).unwrap())
            .collect();
        let picture = roofline(&roof, &places);
        assert!(picture.contains("HBM 3347 GB/s") && picture.contains("fp16 bf16 989"), "{picture}");
        assert_eq!(picture.matches("<circle").count(), 2);
        assert!(!picture.contains("NaN") && !picture.contains("inf"));
        let text = terminal(&roof, &places);
        assert!(text.contains("A  gemm") && text.contains('/') && text.contains('B'), "{text}");
    }
}
