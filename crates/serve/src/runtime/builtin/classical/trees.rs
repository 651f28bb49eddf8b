//! `TreeEnsembleClassifier` and `TreeEnsembleRegressor`: forests and boosted trees.
//!
//! The nodes of all trees are in one array, in which a node refers to its children by index. Invariant: each child comes after its parent,
//! so that a walk through a tree ends; other files are rejected.

use std::collections::HashMap;

use super::attributes::Attributes;
use super::scores::{Classes, Transform, highest, logistic, matrix};
use super::value::Value;
use super::{Operator, required};

/// How a node compares a feature with its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    LessOrEqual,
    Less,
    GreaterOrEqual,
    Greater,
    Equal,
    NotEqual,
    Leaf,
}

impl Mode {
    fn parse(text: &[u8]) -> Result<Self, String> {
        Ok(match text {
            b"BRANCH_LEQ" => Self::LessOrEqual,
            b"BRANCH_LT" => Self::Less,
            b"BRANCH_GTE" => Self::GreaterOrEqual,
            b"BRANCH_GT" => Self::Greater,
            b"BRANCH_EQ" => Self::Equal,
            b"BRANCH_NEQ" => Self::NotEqual,
            b"LEAF" => Self::Leaf,
            other => return Err(format!("node mode '{}' is unknown", String::from_utf8_lossy(other))),
        })
    }
}

#[derive(Debug, Clone, Copy)]
struct Node {
    mode: Mode,
    /// Whether a missing value (NaN) takes the branch of true.
    missing_is_true: bool,
    feature: u32,
    threshold: f64,
    /// Index of the child if the comparison is true; of a leaf, the start of its weights.
    yes: u32,
    /// Index of the child if the comparison is false; of a leaf, the end of its weights.
    no: u32,
}

/// How the weights of the leaves are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aggregate {
    Sum,
    Average,
    Min,
    Max,
}

struct Trees {
    nodes: Vec<Node>,
    roots: Vec<u32>,
    /// Target and weight.
    weights: Vec<(u32, f64)>,
    /// The number of features that a row needs, at least 1.
    features: usize,
}

fn index(n: usize) -> Result<u32, String> {
    u32::try_from(n).map_err(|_| "too many nodes".into())
}

impl Trees {
    /// Reads the trees; `leaves` is the prefix of the weights' attributes: `class` or `target`.
    fn read(attributes: &Attributes<'_>, leaves: &str) -> Result<Self, String> {
        let (tree_ids, node_ids) = (attributes.ints("nodes_treeids"), attributes.ints("nodes_nodeids"));
        let (features, modes) = (attributes.ints("nodes_featureids"), attributes.texts("nodes_modes"));
        let (yes, no) = (attributes.ints("nodes_truenodeids"), attributes.ints("nodes_falsenodeids"));
        let thresholds = attributes.numbers("nodes_values")?;
        let missing = attributes.ints("nodes_missing_value_tracks_true");
        attributes.ignore("nodes_hitrates");
        attributes.ignore("nodes_hitrates_as_tensor");
        let n = tree_ids.len();
        if [node_ids.len(), features.len(), modes.len(), yes.len(), no.len(), thresholds.len()] != [n; 6] {
            return Err("the lists of nodes have different lengths".into());
        }
        let mut by_id = HashMap::with_capacity(n);
        for (i, id) in tree_ids.iter().zip(node_ids).enumerate() {
            if by_id.insert((*id.0, *id.1), index(i)?).is_some() {
                return Err(format!("tree {} has node {} twice", id.0, id.1));
            }
        }
        let leaf = |part: &str| attributes.ints(&format!("{leaves}_{part}"));
        let (weight_trees, weight_nodes, targets) = (leaf("treeids"), leaf("nodeids"), leaf("ids"));
        let values = attributes.numbers(&format!("{leaves}_weights"))?;
        if [weight_nodes.len(), targets.len(), values.len()] != [weight_trees.len(); 3] {
            return Err("the lists of weights have different lengths".into());
        }
        let mut by_node: HashMap<(i64, i64), Vec<(u32, f64)>> = HashMap::new();
        for (((tree, node), target), value) in weight_trees.iter().zip(weight_nodes).zip(targets).zip(values) {
            let target = u32::try_from(*target).map_err(|_| format!("target {target} is not valid"))?;
            by_node.entry((*tree, *node)).or_default().push((target, value));
        }
        let mut trees = Self { nodes: Vec::with_capacity(n), roots: Vec::new(), weights: Vec::new(), features: 1 };
        let mut is_child = vec![false; n];
        for i in 0..n {
            let mode = Mode::parse(&modes[i])?;
            let (first, second) = if mode == Mode::Leaf {
                let start = index(trees.weights.len())?;
                trees.weights.extend(by_node.remove(&(tree_ids[i], node_ids[i])).unwrap_or_default());
                (start, index(trees.weights.len())?)
            } else {
                let mut child = |id: i64| {
                    let found = by_id.get(&(tree_ids[i], id)).copied().filter(|child| *child as usize > i);
                    let child = found.ok_or_else(|| format!("tree {} is not in order at node {id}", tree_ids[i]))?;
                    is_child[child as usize] = true;
                    Ok::<u32, String>(child)
                };
                (child(yes[i])?, child(no[i])?)
            };
            let feature = u32::try_from(features[i]).map_err(|_| format!("feature {} is not valid", features[i]))?;
            // A leaf compares nothing, so its feature need not exist.
            let feature = if mode == Mode::Leaf { 0 } else { feature };
            trees.features = trees.features.max(feature as usize + 1);
            trees.nodes.push(Node {
                mode,
                missing_is_true: missing.get(i).is_some_and(|m| *m != 0),
                feature,
                threshold: thresholds[i],
                yes: first,
                no: second,
            });
        }
        trees.roots = (0..n).filter(|i| !is_child[*i]).map(index).collect::<Result<_, _>>()?;
        Ok(trees)
    }

    fn targets(&self) -> usize {
        self.weights.iter().map(|(target, _)| *target as usize + 1).max().unwrap_or(0)
    }

    /// The weights of the leaf that a row reaches in the tree with this root.
    fn leaf(&self, root: u32, row: &[f64]) -> &[(u32, f64)] {
        let mut node = &self.nodes[root as usize];
        loop {
            let x = row[node.feature as usize];
            let is_true = match node.mode {
                Mode::LessOrEqual => x <= node.threshold,
                Mode::Less => x < node.threshold,
                Mode::GreaterOrEqual => x >= node.threshold,
                Mode::Greater => x > node.threshold,
                Mode::Equal => x == node.threshold,
                Mode::NotEqual => x != node.threshold,
                Mode::Leaf => return &self.weights[node.yes as usize..node.no as usize],
            };
            let next = if is_true || node.missing_is_true && x.is_nan() { node.yes } else { node.no };
            node = &self.nodes[next as usize];
        }
    }

    /// The aggregated weights of a row, one for each target; `reached` says which targets had any.
    fn aggregate(&self, row: &[f64], how: Aggregate, scores: &mut [f64], reached: &mut [bool]) {
        scores.fill(0.0);
        reached.fill(false);
        for root in &self.roots {
            for (target, weight) in self.leaf(*root, row) {
                let (score, known) = (&mut scores[*target as usize], &mut reached[*target as usize]);
                *score = match how {
                    Aggregate::Sum | Aggregate::Average => *score + weight,
                    Aggregate::Min if *known => score.min(*weight),
                    Aggregate::Max if *known => score.max(*weight),
                    Aggregate::Min | Aggregate::Max => *weight,
                };
                *known = true;
            }
        }
        if how == Aggregate::Average {
            scores.iter_mut().for_each(|score| *score /= self.roots.len() as f64);
        }
    }

    /// The input as doubles. A float is compared as the double of the same value, with the threshold that the file holds.
    fn rows(&self, input: &Value) -> Result<(usize, usize, Vec<f64>), String> {
        let (rows, columns) = input.matrix()?;
        if columns < self.features {
            return Err(format!("{columns} features, expected at least {}", self.features));
        }
        Ok((rows, columns, input.to_f64()?))
    }
}

pub(super) fn operator(name: &str, attributes: &Attributes<'_>) -> Result<Operator, String> {
    let transform = Transform::parse(&attributes.text("post_transform", "NONE"))?;
    let base = attributes.numbers("base_values")?;
    if name == "TreeEnsembleClassifier" {
        classifier(attributes, transform, base)
    } else {
        regressor(attributes, transform, base)
    }
}

fn regressor(attributes: &Attributes<'_>, transform: Transform, base: Vec<f64>) -> Result<Operator, String> {
    let how = match attributes.text("aggregate_function", "SUM").as_str() {
        "SUM" => Aggregate::Sum,
        "AVERAGE" => Aggregate::Average,
        "MIN" => Aggregate::Min,
        "MAX" => Aggregate::Max,
        other => return Err(format!("aggregate_function '{other}' is unknown")),
    };
    let targets = usize::try_from(attributes.int("n_targets", 1)).ok().filter(|n| *n > 0).ok_or("no targets")?;
    let trees = Trees::read(attributes, "target")?;
    if trees.targets() > targets {
        return Err("a weight is for a target that does not exist".into());
    }
    Ok(Box::new(move |inputs| {
        let (rows, columns, x) = trees.rows(required(inputs, 0)?)?;
        let (mut scores, mut reached) = (vec![0.0; targets], vec![false; targets]);
        let mut out = Vec::with_capacity(rows * targets);
        for row in x.chunks_exact(columns) {
            trees.aggregate(row, how, &mut scores, &mut reached);
            scores.iter_mut().zip(&base).for_each(|(score, base)| *score += base);
            transform.apply(&mut scores);
            out.extend_from_slice(&scores);
        }
        Ok(vec![matrix(rows, targets, &out)])
    }))
}

fn classifier(attributes: &Attributes<'_>, transform: Transform, base: Vec<f64>) -> Result<Operator, String> {
    let classes = Classes::read(attributes, "classlabels_int64s");
    let trees = Trees::read(attributes, "class")?;
    let n = classes.len();
    if n == 0 || trees.targets() > n {
        return Err("a weight is for a class that does not exist".into());
    }
    let first = trees.weights.first().map(|(class, _)| *class);
    // With two classes, the weights may all be for one of them.
    let is_binary = n == 2 && trees.weights.iter().all(|(class, _)| Some(*class) == first);
    let is_probability = trees.weights.iter().all(|(_, weight)| *weight >= 0.0);
    let score_class = first.unwrap_or(0) as usize;
    Ok(Box::new(move |inputs| {
        let (rows, columns, x) = trees.rows(required(inputs, 0)?)?;
        let (mut scores, mut reached) = (vec![0.0; n], vec![false; n]);
        let mut chosen = Vec::with_capacity(rows);
        let mut out = Vec::with_capacity(rows * n);
        for row in x.chunks_exact(columns) {
            trees.aggregate(row, Aggregate::Sum, &mut scores, &mut reached);
            if is_binary {
                let score = scores[score_class] + base.get(if base.len() == 2 { 1 } else { 0 }).copied().unwrap_or(0.0);
                chosen.push(usize::from(score > if is_probability { 0.5 } else { 0.0 }));
                out.extend(match (is_probability, transform) {
                    (true, _) => [1.0 - score, score],
                    (false, Transform::Logistic) => [logistic(-score), logistic(score)],
                    (false, _) => [-score, score],
                });
            } else {
                scores.iter_mut().zip(&base).for_each(|(score, base)| *score += base);
                chosen.push(highest(&scores));
                transform.apply(&mut scores);
                out.extend_from_slice(&scores);
            }
        }
        Ok(vec![classes.labels(&chosen), matrix(rows, n, &out)])
    }))
}
