//! `dag`: the graph of stages or of outputs, for people and for programs that draw it.

use std::collections::{BTreeMap, BTreeSet};

use super::graph::{Graph, of_outputs};
use crate::error::DataError;
use crate::pipeline::JOIN;
use crate::project::target::{How, named};
use crate::project::{Project, find_output};
use crate::stage::DVC_SUFFIX;

/// What is drawn.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Outputs instead of stages.
    pub outs: bool,
    /// Everything that is connected to the target, not only what it depends on.
    pub full: bool,
    /// One node for all stages of a `foreach` or `matrix`.
    pub collapse: bool,
}

/// A graph of names: an edge leads from what is depended on to what depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drawing {
    nodes: Vec<String>,
    edges: BTreeSet<(usize, usize)>,
}

/// The graph of the project, or of a target.
///
/// # Errors
/// [`DataError::Target`] if the target is not a stage or output, or an error of the project's files.
pub fn dag(project: &Project, target: Option<&str>, options: Options) -> Result<Drawing, DataError> {
    let stages = project.stages()?;
    let graph = Graph::new(project, &stages)?;
    let address = |i: usize| stages[i].address(&project.current);
    let mut drawing = Drawing::default();
    if options.outs {
        for (name, sources) in of_outputs(project, &stages)? {
            let to = drawing.node(&name);
            for source in sources {
                let from = drawing.node(&source);
                drawing.edges.insert((from, to));
            }
        }
    } else {
        for i in 0..stages.len() {
            let to = drawing.node(&address(i));
            for dependency in graph.dependencies(i) {
                let from = drawing.node(&address(*dependency));
                drawing.edges.insert((from, to));
            }
        }
    }
    if let Some(target) = target {
        let mut selected = named(project, &stages, target, How::default())?;
        let path = project.absolute(target);
        let mut names: Vec<String> = Vec::new();
        if selected.is_empty() {
            let (stage, out) = find_output(&stages, &path).ok_or_else(|| DataError::Target(target.to_owned()))?;
            selected.extend(stages.iter().position(|other| std::ptr::eq(other, stage)));
            names.push(out.display(&project.current, &project.root));
        } else {
            let outs = selected.iter().flat_map(|i| &stages[*i].outs);
            names.extend(outs.map(|out| out.display(&project.current, &project.root)));
        }
        if !options.outs {
            names = selected.into_iter().map(address).collect();
        }
        drawing = drawing.around(&names, options.full);
    }
    Ok(if options.collapse { drawing.collapsed() } else { drawing })
}

impl Drawing {
    fn node(&mut self, name: &str) -> usize {
        self.nodes.iter().position(|known| known == name).unwrap_or_else(|| {
            self.nodes.push(name.to_owned());
            self.nodes.len() - 1
        })
    }

    /// What the named nodes depend on, or everything that is connected to them.
    fn around(&self, names: &[String], full: bool) -> Self {
        let mut kept: BTreeSet<usize> =
            names.iter().filter_map(|name| self.nodes.iter().position(|node| node == name)).collect();
        loop {
            let before = kept.len();
            for (from, to) in &self.edges {
                if kept.contains(to) || (full && kept.contains(from)) {
                    kept.extend([*from, *to]);
                }
            }
            if kept.len() == before {
                return self.only(&kept);
            }
        }
    }

    fn only(&self, kept: &BTreeSet<usize>) -> Self {
        let mut drawing = Self { nodes: kept.iter().map(|i| self.nodes[*i].clone()).collect(), edges: BTreeSet::new() };
        let place: BTreeMap<usize, usize> = kept.iter().enumerate().map(|(new, old)| (*old, new)).collect();
        let edges = self.edges.iter().filter_map(|(from, to)| Some((*place.get(from)?, *place.get(to)?)));
        drawing.edges = edges.collect();
        drawing
    }

    fn collapsed(&self) -> Self {
        let group = |name: &str| match name.split_once(JOIN) {
            Some((group, _)) if !name.ends_with(DVC_SUFFIX) => group.to_owned(),
            _ => name.to_owned(),
        };
        let mut drawing = Self::default();
        let places: Vec<usize> = self.nodes.iter().map(|name| drawing.node(&group(name))).collect();
        let edges = self.edges.iter().map(|(from, to)| (places[*from], places[*to]));
        drawing.edges = edges.filter(|(from, to)| from != to).collect();
        drawing
    }

    /// The parts that are not connected with each other, in the order of their first nodes.
    fn components(&self) -> Vec<Self> {
        let mut open: BTreeSet<usize> = (0..self.nodes.len()).collect();
        let mut components = Vec::new();
        while let Some(first) = open.first().copied() {
            let mut component = BTreeSet::from([first]);
            loop {
                let before = component.len();
                for (from, to) in &self.edges {
                    if component.contains(from) || component.contains(to) {
                        component.extend([*from, *to]);
                    }
                }
                if component.len() == before {
                    break;
                }
            }
            open.retain(|node| !component.contains(node));
            components.push(self.only(&component));
        }
        components
    }

    /// The text in the language of Graphviz.
    pub fn to_dot(&self) -> String {
        let quote = |name: &String| format!("\"{}\"", name.replace('"', "\\\""));
        let mut text = String::from("strict digraph {\n");
        for name in &self.nodes {
            text.push_str(&format!("{};\n", quote(name)));
        }
        for (from, to) in &self.edges {
            text.push_str(&format!("{} -> {};\n", quote(&self.nodes[*from]), quote(&self.nodes[*to])));
        }
        text + "}\n\n"
    }

    /// The text in the language of Mermaid, in a block of Markdown if desired.
    pub fn to_mermaid(&self, markdown: bool) -> String {
        let mut text = String::from("flowchart TD");
        let mut number = 0;
        for component in self.components() {
            let mut names: Vec<&String> = component.nodes.iter().collect();
            names.sort();
            let mut ids: BTreeMap<&String, String> = BTreeMap::new();
            for name in names {
                number += 1;
                text.push_str(&format!("\n\tnode{number}[\"{name}\"]"));
                ids.insert(name, format!("node{number}"));
            }
            let mut edges: Vec<(&String, &String)> =
                component.edges.iter().map(|(from, to)| (&component.nodes[*from], &component.nodes[*to])).collect();
            edges.sort();
            for (from, to) in edges {
                text.push_str(&format!("\n\t{}-->{}", ids[from], ids[to]));
            }
        }
        if markdown { format!("```mermaid\n{text}\n```\n") } else { text + "\n" }
    }

    /// Boxes with lines between them, from top to bottom.
    pub fn to_text(&self) -> String {
        self.components().iter().map(Self::boxes).collect::<Vec<_>>().join("\n")
    }

    /// The row of each node: below everything that it depends on.
    fn rows(&self) -> Vec<Vec<usize>> {
        let mut row = vec![0_usize; self.nodes.len()];
        // The graph has no cycle, so that no path is longer than the number of nodes.
        for _ in 0..self.nodes.len() {
            for (from, to) in &self.edges {
                row[*to] = row[*to].max(row[*from] + 1);
            }
        }
        let mut rows = vec![Vec::new(); row.iter().max().map_or(0, |last| last + 1)];
        for (node, row) in row.into_iter().enumerate() {
            rows[row].push(node);
        }
        rows
    }

    fn boxes(&self) -> String {
        /// Columns between boxes, and lines between rows of boxes.
        const GAP: usize = 3;
        const BOX_HEIGHT: usize = 3;
        let rows = self.rows();
        let width = |node: usize| self.nodes[node].chars().count() + 4;
        let row_width = |row: &Vec<usize>| row.iter().map(|node| width(*node) + GAP).sum::<usize>().saturating_sub(GAP);
        let total = rows.iter().map(row_width).max().unwrap_or(0);
        let mut place = vec![(0, 0); self.nodes.len()];
        for (r, row) in rows.iter().enumerate() {
            let mut left = (total - row_width(row)) / 2;
            for node in row {
                place[*node] = (left, r * (BOX_HEIGHT + GAP));
                left += width(*node) + GAP;
            }
        }
        let mut lines = vec![vec![' '; total]; (rows.len() * (BOX_HEIGHT + GAP)).saturating_sub(GAP)];
        let center = |node: usize| (place[node].0 + width(node) / 2, place[node].1);
        for (from, to) in &self.edges {
            let ((from_x, from_y), (to_x, to_y)) = (center(*from), center(*to));
            let (top, bottom) = (from_y + BOX_HEIGHT, to_y);
            let steps = bottom - top;
            for (step, line) in lines[top..bottom].iter_mut().enumerate() {
                let along = |from: usize, to: usize| (from * (steps - step) + to * (step + 1)) / (steps + 1);
                line[along(from_x, to_x).min(total - 1)] = '*';
            }
        }
        for (node, (left, top)) in place.iter().copied().enumerate() {
            let border = format!("+{}+", "-".repeat(width(node) - 2));
            for (offset, text) in [border.clone(), format!("| {} |", self.nodes[node]), border].into_iter().enumerate()
            {
                for (x, c) in text.chars().enumerate() {
                    lines[top + offset][left + x] = c;
                }
            }
        }
        let lines = lines.into_iter().map(|line| line.into_iter().collect::<String>().trim_end().to_owned() + "\n");
        lines.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawing() -> Drawing {
        let mut drawing = Drawing::default();
        for (from, to) in [("prep", "train@a"), ("prep", "train@b"), ("train@a", "eval"), ("x.dvc", "y")] {
            let edge = (drawing.node(from), drawing.node(to));
            drawing.edges.insert(edge);
        }
        drawing
    }

    #[test]
    fn a_part_of_the_graph_is_drawn() {
        let part = drawing().around(&["train@a".into()], false);
        assert_eq!(part.to_dot(), "strict digraph {\n\"prep\";\n\"train@a\";\n\"prep\" -> \"train@a\";\n}\n\n");
        let full = drawing().around(&["train@a".into()], true);
        assert_eq!(full.nodes, ["prep", "train@a", "train@b", "eval"]);
    }

    #[test]
    fn groups_are_one_node() {
        let expected = "flowchart TD\n\tnode1[\"eval\"]\n\tnode2[\"prep\"]\n\tnode3[\"train\"]\n\tnode2-->node3\n\tnode3-->node1\n\tnode4[\"x.dvc\"]\n\tnode5[\"y\"]\n\tnode4-->node5\n";
        assert_eq!(drawing().collapsed().to_mermaid(false), expected);
    }

    #[test]
    fn boxes_are_connected() {
        let mut chain = Drawing::default();
        let edge = (chain.node("prep"), chain.node("train"));
        chain.edges.insert(edge);
        let expected = "+------+\n| prep |\n+------+\n    *\n    *\n    *\n+-------+\n| train |\n+-------+\n";
        assert_eq!(chain.to_text(), expected);
    }
}
