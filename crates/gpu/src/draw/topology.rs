//! Topology diagrams: GPUs in a circle, with a line for each connection.

use super::{COLOURS, Svg};
use crate::link::Link;
use crate::topology::Topology;

/// Colour and width of the line for a connection.
fn line(link: Link) -> (&'static str, f64) {
    match link {
        Link::NvLink(n) => (COLOURS[2], 1.0 + f64::from(n).sqrt()),
        Link::Same | Link::Board | Link::OneSwitch => (COLOURS[0], 2.5),
        Link::Switches | Link::HostBridge => (COLOURS[4], 2.0),
        Link::Node => (COLOURS[1], 1.5),
        Link::System => (COLOURS[5], 1.0),
    }
}

/// Draws the connections of a machine's GPUs as SVG.
pub fn topology(topology: &Topology) -> String {
    let n = topology.gpus.len();
    let (width, height, radius) = (640.0, 480.0, 170.0);
    let mut svg = Svg::new(width, height, "How the GPUs are connected");
    let place = |i: usize| {
        let angle = std::f64::consts::TAU * i as f64 / n.max(1) as f64 - std::f64::consts::FRAC_PI_2;
        (width / 2.0 + radius * angle.cos(), 225.0 + radius * angle.sin())
    };
    let mut kinds: Vec<Link> = Vec::new();
    for a in 0..n {
        for b in a + 1..n {
            let link = topology.links[a][b];
            let ((x1, y1), (x2, y2), (colour, thickness)) = (place(a), place(b), line(link));
            svg.add(format_args!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" stroke-width=\"{thickness:.1}\" opacity=\"0.7\"><title>GPU {a} to GPU {b}: {}</title></line>", link.description()));
            if !kinds.contains(&link) {
                kinds.push(link);
            }
        }
    }
    for i in 0..n {
        let (x, y) = place(i);
        svg.add(format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"24\" class=\"box\"/>"));
        svg.label(x, y + 1.0, "middle", "ink", &format!("GPU {i}"));
        if let Some(node) = topology.numa[i] {
            svg.label(x, y + 14.0, "middle", "dim", &format!("node {node}"));
        }
    }
    kinds.sort_unstable();
    for (i, link) in kinds.iter().enumerate() {
        let (x, y) = (16.0 + 156.0 * (i % 4) as f64, 448.0 + 18.0 * (i / 4) as f64);
        let (colour, thickness) = line(*link);
        svg.add(format_args!(
            "<line x1=\"{x}\" y1=\"{0}\" x2=\"{1}\" y2=\"{0}\" stroke=\"{colour}\" stroke-width=\"{thickness:.1}\"/>",
            y - 4.0,
            x + 22.0
        ));
        svg.label(x + 28.0, y, "start", "ink", &format!("{} {}", link.short(), link.description()));
    }
    if topology.simulated {
        svg.label(width - 12.0, 20.0, "end", "dim", "SIMULATED");
    }
    svg.finish()
}
