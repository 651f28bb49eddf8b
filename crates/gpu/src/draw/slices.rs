//! Maps of MIG instances over the memory slices of GPUs.

use super::{COLOURS, Svg};
use crate::mig::{Geometry, Instance};

/// A label for each GPU and the instances on it.
type Gpus = [(String, Vec<Instance>)];

fn colour(geometry: &Geometry, profile: &str) -> &'static str {
    let at = geometry.profiles.iter().position(|p| p.name == profile).unwrap_or(0);
    COLOURS[at % COLOURS.len()]
}

/// Draws the slice map of GPUs that share one geometry as SVG.
pub fn slices(geometry: &Geometry, gpus: &Gpus) -> String {
    let (left, cell, row) = (90.0, 62.0, 44.0);
    let width = left + cell * f64::from(geometry.memory) + 16.0;
    let height = 34.0 + row * gpus.len() as f64;
    let mut svg = Svg::new(width, height, &format!("MIG instances of {}", geometry.name));
    for slice in 0..geometry.memory {
        svg.label(left + cell * (f64::from(slice) + 0.5), 20.0, "middle", "dim", &slice.to_string());
    }
    for (i, (label, instances)) in gpus.iter().enumerate() {
        let y = 30.0 + row * i as f64;
        svg.label(left - 10.0, y + 22.0, "end", "ink", label);
        for slice in 0..geometry.memory {
            svg.add(format_args!(
                "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"34\" class=\"box\"/>",
                left + cell * f64::from(slice),
                cell
            ));
        }
        for instance in instances {
            let (x, w) = (left + cell * f64::from(instance.at.start), cell * f64::from(instance.at.size));
            svg.add(format_args!(
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"30\" rx=\"4\" fill=\"{}\"/>",
                x + 2.0,
                y + 2.0,
                w - 4.0,
                colour(geometry, &instance.profile)
            ));
            svg.add(format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#fff\" font-size=\"11\">{}</text>",
                x + w / 2.0,
                y + 21.0,
                super::escape(&instance.label())
            ));
        }
    }
    svg.finish()
}

/// Draws the slice map as text for terminals: `GPU 0  [3g.40gb         |1g.10gb|1g.10gb|1g.10gb|       ]`.
pub fn slices_text(geometry: &Geometry, gpus: &Gpus) -> String {
    let cell_width = geometry.profiles.iter().map(|p| p.name.len()).max().unwrap_or(8);
    let label_width = gpus.iter().map(|(l, _)| l.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, instances) in gpus {
        let mut cells = Vec::new();
        let mut slice = 0;
        while slice < geometry.memory {
            let found = instances.iter().find(|i| i.at.start == slice);
            let (size, shown) = found.map_or((1, String::new()), |i| (i.at.size, i.label()));
            let width = cell_width * size as usize + (size as usize - 1);
            cells.push(format!("{shown:<width$}"));
            slice += size;
        }
        text.push_str(&format!("{name:<label_width$}  [{}]\n", cells.join("|")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvml::Placement;

    #[test]
    fn each_slice_is_drawn_once() {
        let geometry = Geometry::family("h100").unwrap();
        let instances = vec![
            Instance::new("1g.10gb", Placement { start: 0, size: 1 }),
            Instance::new("3g.40gb", Placement { start: 4, size: 4 }),
        ];
        let gpus = [("GPU 0".to_owned(), instances)];
        let text = slices_text(&geometry, &gpus);
        assert_eq!(text, format!("GPU 0  [1g.10gb   |{0}|{0}|{0}|{1:<43}]\n", " ".repeat(10), "3g.40gb"));
        assert_eq!(slices(&geometry, &gpus).matches("<rect").count(), 8 + 2);
    }
}
