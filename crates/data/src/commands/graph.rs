//! The graph of stages: an edge leads from a stage to each stage whose output it depends on.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::project::Project;
use crate::stage::Stage;

/// The graph of a project's stages. Nodes are indices of the list that it was built from.
#[derive(Debug, Clone)]
pub struct Graph {
    /// For each stage, the stages it depends on, in the order of its dependencies.
    dependencies: Vec<Vec<usize>>,
    /// For each stage, those that depend on it.
    dependents: Vec<Vec<usize>>,
}

/// The outputs of stages by their path.
struct Outputs<'a>(BTreeMap<&'a Path, (usize, usize)>);

impl<'a> Outputs<'a> {
    /// The outputs of all stages.
    ///
    /// # Errors
    /// [`DataError::Overlap`] if two outputs have one path, or one is inside of another.
    fn new(project: &Project, stages: &'a [Stage]) -> Result<Self, DataError> {
        let mut all = BTreeMap::new();
        for (s, stage) in stages.iter().enumerate() {
            for (o, out) in stage.outs.iter().enumerate() {
                let Some(path) = out.location.as_deref() else { continue };
                let Some((other, _)) = all.insert(path, (s, o)) else { continue };
                let addresses = [stage.address(&project.current), stages[other].address(&project.current)];
                let names = addresses.map(|name| format!("\n\t- {name}")).concat();
                let path = project.display(path);
                return Err(DataError::Overlap(format!(
                    "output '{path}' is specified in:{names}\nUse `remove` with any of the above stages to stop tracking the overlapping \
                     output."
                )));
            }
        }
        let outputs = Self(all);
        for (path, (s, _)) in &outputs.0 {
            if let Some((below, (other, _))) = outputs.below(path).next() {
                let (parent, child) = (project.display(path), project.display(below));
                let (parent_stage, child_stage) =
                    (stages[*s].address(&project.current), stages[*other].address(&project.current));
                return Err(DataError::Overlap(format!(
                    "The output paths:\n'{parent}'('{parent_stage}')\n'{child}'('{child_stage}')\noverlap and are thus in the same tracked \
                     directory.\nTo keep reproducibility, outputs should be in separate tracked directories or tracked individually."
                )));
            }
        }
        Ok(outputs)
    }

    fn below<'b>(&'b self, path: &'b Path) -> impl Iterator<Item = (&'b &'a Path, &'b (usize, usize))> {
        // Paths are compared by components, so all that are below `path` follow it directly.
        self.0
            .range::<Path, _>((Bound::Excluded(path), Bound::Unbounded))
            .take_while(move |(other, _)| other.starts_with(path))
    }

    /// The outputs that contain the path, from the outermost, and those inside of it.
    fn overlapping(&self, path: &Path) -> Vec<(usize, usize)> {
        let mut found: Vec<(usize, usize)> =
            path.ancestors().filter_map(|ancestor| self.0.get(ancestor).copied()).collect();
        found.reverse();
        found.extend(self.below(path).map(|(_, place)| *place));
        found
    }
}

/// The local paths that a stage depends on, with its parameter files.
fn inputs(stage: &Stage) -> impl Iterator<Item = &Path> {
    let params = stage.recipe.iter().flat_map(|recipe| &recipe.params).map(|params| params.path.as_path());
    stage.deps.iter().filter_map(|dep| dep.location.as_deref()).chain(params)
}

impl Graph {
    /// The graph of these stages.
    ///
    /// # Errors
    /// [`DataError::Overlap`] for outputs that overlap, [`DataError::Invalid`] for a cycle.
    pub fn new(project: &Project, stages: &[Stage]) -> Result<Self, DataError> {
        let outputs = Outputs::new(project, stages)?;
        let mut graph =
            Self { dependencies: vec![Vec::new(); stages.len()], dependents: vec![Vec::new(); stages.len()] };
        for (s, stage) in stages.iter().enumerate() {
            if let Some((other, _)) = stage.file.ancestors().find_map(|folder| outputs.0.get(folder)) {
                return Err(DataError::Overlap(format!(
                    "file '{}' is inside of the output of stage '{}'",
                    project.display(&stage.file),
                    stages[*other].address(&project.current)
                )));
            }
            for path in inputs(stage) {
                for (other, _) in outputs.overlapping(path) {
                    if !graph.dependencies[s].contains(&other) {
                        graph.dependencies[s].push(other);
                        graph.dependents[other].push(s);
                    }
                }
            }
        }
        if let Some(cycle) = graph.cycle() {
            let names: Vec<String> = cycle.iter().map(|s| stages[*s].address(&project.current)).collect();
            return Err(DataError::Invalid(format!("Pipeline has a cycle involving: {}.", names.join(", "))));
        }
        Ok(graph)
    }

    /// The stages whose outputs a stage depends on.
    pub fn dependencies(&self, stage: usize) -> &[usize] {
        &self.dependencies[stage]
    }

    /// The stages that depend on outputs of a stage.
    pub fn dependents(&self, stage: usize) -> &[usize] {
        &self.dependents[stage]
    }

    /// Removes the edges of stages to their dependencies.
    pub fn disconnect(&mut self, stage: usize) {
        for other in std::mem::take(&mut self.dependencies[stage]) {
            self.dependents[other].retain(|dependent| *dependent != stage);
        }
    }

    /// The stages of a cycle, if there is one.
    fn cycle(&self) -> Option<Vec<usize>> {
        let count = self.dependencies.len();
        // Stages without open dependencies are taken away until none is left, or only cycles and what depends on them.
        let mut open: Vec<usize> = self.dependencies.iter().map(Vec::len).collect();
        let mut ready: Vec<usize> = (0..count).filter(|s| open[*s] == 0).collect();
        while let Some(stage) = ready.pop() {
            for dependent in &self.dependents[stage] {
                open[*dependent] -= 1;
                if open[*dependent] == 0 {
                    ready.push(*dependent);
                }
            }
        }
        let mut at = (0..count).find(|s| open[*s] > 0)?;
        let mut path: Vec<usize> = Vec::new();
        loop {
            if let Some(start) = path.iter().position(|s| *s == at) {
                return Some(path.split_off(start));
            }
            path.push(at);
            at = self.dependencies[at].iter().copied().find(|s| open[*s] > 0)?;
        }
    }

    /// All stages that are reached from `sources` along `edges`, with the sources.
    fn reached(sources: &[usize], edges: &dyn Fn(usize) -> Vec<usize>) -> Vec<usize> {
        let mut found = BTreeSet::new();
        let mut open = sources.to_vec();
        while let Some(stage) = open.pop() {
            if found.insert(stage) {
                open.extend(edges(stage));
            }
        }
        found.into_iter().collect()
    }

    /// The stages with everything that they depend on.
    pub fn with_dependencies(&self, sources: &[usize]) -> Vec<usize> {
        Self::reached(sources, &|stage| self.dependencies[stage].clone())
    }

    /// The stages with everything that depends on them.
    pub fn with_dependents(&self, sources: &[usize]) -> Vec<usize> {
        Self::reached(sources, &|stage| self.dependents[stage].clone())
    }

    /// The stages with everything that is connected to them.
    pub fn connected(&self, sources: &[usize]) -> Vec<usize> {
        Self::reached(sources, &|stage| [self.dependencies[stage].as_slice(), &self.dependents[stage]].concat())
    }

    /// The selected stages in an order in which every stage follows those that it depends on: that of a depth-first search which visits
    /// stages and dependencies in their order.
    pub fn sorted(&self, selected: &[usize]) -> Vec<usize> {
        let count = self.dependencies.len();
        let mut is_selected = vec![false; count];
        selected.iter().for_each(|stage| is_selected[*stage] = true);
        let mut visited = vec![false; count];
        let mut order = Vec::new();
        for start in (0..count).filter(|stage| is_selected[*stage]) {
            if std::mem::replace(&mut visited[start], true) {
                continue;
            }
            let mut stack = vec![(start, 0)];
            while let Some((stage, next)) = stack.pop() {
                let Some(dependency) = self.dependencies[stage].get(next).copied() else {
                    order.push(stage);
                    continue;
                };
                stack.push((stage, next + 1));
                if is_selected[dependency] && !std::mem::replace(&mut visited[dependency], true) {
                    stack.push((dependency, 0));
                }
            }
        }
        order
    }
}

/// The graph of outputs: for each, those that its stage depends on. Paths are those for the user.
///
/// # Errors
/// As [`Graph::new`].
pub fn of_outputs(project: &Project, stages: &[Stage]) -> Result<Vec<(String, Vec<String>)>, DataError> {
    let outputs = Outputs::new(project, stages)?;
    let name = |(s, o): (usize, usize)| stages[s].outs[o].display(&project.current, &project.root);
    let mut edges: Vec<(PathBuf, String, Vec<String>)> = Vec::new();
    for (s, stage) in stages.iter().enumerate() {
        let mut sources: Vec<String> = Vec::new();
        for path in inputs(stage) {
            for source in outputs.overlapping(path).into_iter().map(name) {
                if !sources.contains(&source) {
                    sources.push(source);
                }
            }
        }
        for (o, out) in stage.outs.iter().enumerate() {
            edges.push((out.location.clone().unwrap_or_default(), name((s, o)), sources.clone()));
        }
    }
    edges.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(edges.into_iter().map(|(_, name, sources)| (name, sources)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(dependencies: &[&[usize]]) -> Graph {
        let mut dependents = vec![Vec::new(); dependencies.len()];
        for (s, list) in dependencies.iter().enumerate() {
            list.iter().for_each(|other| dependents[*other].push(s));
        }
        Graph { dependencies: dependencies.iter().map(|list| list.to_vec()).collect(), dependents }
    }

    #[test]
    fn stages_follow_their_dependencies() {
        // 4 depends on 3 and 2, which depend on 0; 1 is alone.
        let mut graph = graph(&[&[], &[], &[0], &[0], &[3, 2]]);
        assert_eq!(graph.sorted(&[0, 1, 2, 3, 4]), [0, 1, 2, 3, 4]);
        assert_eq!(graph.sorted(&graph.with_dependencies(&[3])), [0, 3]);
        assert_eq!(graph.sorted(&graph.with_dependents(&[2])), [2, 4]);
        assert_eq!(graph.sorted(&graph.connected(&[2])), [0, 2, 3, 4]);
        graph.disconnect(3);
        assert_eq!(graph.sorted(&graph.with_dependencies(&[3])), [3]);
    }

    #[test]
    fn cycles_are_found() {
        assert_eq!(graph(&[&[], &[0], &[1]]).cycle(), None);
        let mut cycle = graph(&[&[], &[0, 3], &[1], &[2], &[3]]).cycle().unwrap();
        cycle.sort_unstable();
        assert_eq!(cycle, [1, 2, 3]);
        assert_eq!(graph(&[&[0]]).cycle(), Some(vec![0]));
    }
}
