//! The variables of a `dvc.yaml`: those of its `vars`, of parameter files, and of the iteration of a stage.

use std::cell::Cell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::files::Files;
use super::keyed::Keyed;
use super::template::{self, Lookup, NODE_BYTES, Place, TemplateError, Unpacking};
use super::value::{text, type_name};
use crate::allowance::Allowance;
use crate::error::DataError;
use crate::stage::UsedVariables;
use crate::yaml::Value;

/// The parameter file that is used if none is named.
pub const DEFAULT_PARAMS_FILE: &str = "params.yaml";

/// A variable with the place that defines it. A copy shares the values, because each stage of an iteration has one.
#[derive(Debug, Clone)]
pub(super) enum Node {
    Scalar(Rc<Value>, Source),
    List(Rc<Vec<Self>>, Source),
    Map(Rc<Vec<(String, Self)>>),
}

/// Where a variable is defined.
#[derive(Debug, Clone, Default)]
pub(super) struct Source {
    /// The parameter file, or the entry of `vars`; `None` for an iteration.
    name: Option<Rc<str>>,
    /// The last of the keys that lead to the variable.
    key: Option<Rc<Step>>,
    /// Whether `name` is a parameter file.
    is_file: bool,
}

/// A key, and the keys before it. Many variables share a long one.
#[derive(Debug)]
struct Step {
    key: String,
    above: Option<Rc<Self>>,
}

impl Source {
    /// A variable of a parameter file, or of an entry of `vars`.
    fn new(name: &Rc<str>, key: &str, is_file: bool) -> Self {
        let key = Step { key: key.to_owned(), above: None };
        Self { name: Some(name.clone()), key: Some(Rc::new(key)), is_file }
    }

    fn below(&self, key: String) -> Self {
        Self { key: Some(Rc::new(Step { key, above: self.key.clone() })), ..self.clone() }
    }

    /// The keys that lead to the variable, joined by dots.
    fn path(&self) -> String {
        let steps = std::iter::successors(self.key.as_deref(), |step| step.above.as_deref());
        let mut keys: Vec<&str> = steps.map(|step| step.key.as_str()).collect();
        keys.reverse();
        keys.join(".")
    }
}

impl Node {
    fn new(value: Value, source: Source) -> Self {
        match value {
            Value::Map(entries) => {
                let entry = |(key, value): (String, Value)| {
                    let source = source.below(key.clone());
                    (key, Self::new(value, source))
                };
                Self::Map(Rc::new(entries.into_iter().map(entry).collect()))
            }
            Value::List(items) => {
                let item = |(i, item): (usize, Value)| Self::new(item, source.below(i.to_string()));
                Self::List(Rc::new(items.into_iter().enumerate().map(item).collect()), source)
            }
            scalar => Self::Scalar(Rc::new(scalar), source),
        }
    }

    /// A value of `foreach` or `matrix`, or of the iteration, that no parameter file has.
    pub(super) fn own(value: Value) -> Self {
        Self::new(value, Source::default())
    }

    /// A dictionary of variables.
    pub(super) fn map(entries: Vec<(String, Self)>) -> Self {
        Self::Map(Rc::new(entries))
    }

    pub(super) fn to_value(&self) -> Value {
        match self {
            Self::Scalar(value, _) => Value::clone(value),
            Self::List(items, _) => Value::List(items.iter().map(Self::to_value).collect()),
            Self::Map(entries) => {
                Value::Map(entries.iter().map(|(key, node)| (key.clone(), node.to_value())).collect())
            }
        }
    }

    /// About as many bytes as its value takes.
    fn bytes(&self) -> usize {
        match self {
            Self::Scalar(value, _) => NODE_BYTES + value.as_str().map_or(0, str::len),
            Self::List(items, _) => NODE_BYTES + items.iter().map(Self::bytes).sum::<usize>(),
            Self::Map(entries) => {
                NODE_BYTES + entries.iter().map(|(key, node)| key.len() + node.bytes()).sum::<usize>()
            }
        }
    }

    /// The source of the node, or of the first value in it.
    fn source(&self) -> Option<&Source> {
        match self {
            Self::Scalar(_, source) | Self::List(_, source) => Some(source),
            Self::Map(entries) => entries.first().and_then(|(_, node)| node.source()),
        }
    }

    fn step(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Scalar(..) => None,
            Self::List(items, _) => {
                let index: i64 = key.parse().ok()?;
                let from_end = usize::try_from(-index).ok().and_then(|back| items.len().checked_sub(back));
                items.get(usize::try_from(index).ok().or(from_end)?)
            }
            Self::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, node)| node),
        }
    }
}

/// What the templates of a file may still expand to, which all copies of its variables share.
#[derive(Debug)]
struct Budget {
    bytes: Cell<usize>,
    allowance: Allowance,
}

/// A set of variables.
#[derive(Debug, Clone)]
pub(super) struct Context {
    entries: Rc<Vec<(String, Node)>>,
    /// Variables of the iteration, which have precedence, and which nothing may redefine.
    iteration: Vec<(String, Node)>,
    /// The loaded parameter files, and which of their keys if not all.
    imports: Vec<(PathBuf, Option<Vec<String>>)>,
    used: UsedVariables,
    budget: Rc<Budget>,
}

/// Why variables cannot be loaded.
pub(super) type LoadError = String;

impl Context {
    /// No variables. What templates expand to with them, and with copies of them, has the limits of `allowance`.
    pub(super) fn new(allowance: &Allowance) -> Self {
        let budget = Budget { bytes: Cell::new(allowance.expanded_bytes()), allowance: allowance.clone() };
        Self {
            entries: Rc::default(),
            iteration: Vec::new(),
            imports: Vec::new(),
            used: UsedVariables::new(),
            budget: Rc::new(budget),
        }
    }

    /// Sets a variable of an iteration, for this copy of the context.
    pub(super) fn set(&mut self, key: &str, node: Node) {
        self.iteration.push((key.to_owned(), node));
    }

    /// Takes bytes of what the templates may expand to.
    ///
    /// # Errors
    /// [`TemplateError::Limit`] if there are not as many left, or if nobody waits for the result.
    pub(super) fn take_bytes(&self, bytes: usize) -> Result<(), TemplateError> {
        let budget = &self.budget;
        budget.allowance.check().map_err(|error| TemplateError::Limit(error.to_string()))?;
        let Some(rest) = budget.bytes.get().checked_sub(bytes) else {
            let maximum = slipway_core::units::bytes(budget.allowance.expanded_bytes() as u64);
            return Err(TemplateError::Limit(format!("the templates of the file expand to more than {maximum}")));
        };
        budget.bytes.set(rest);
        Ok(())
    }

    /// Expands the templates of `foreach` or `matrix`. A variable in them keeps its place, so that the use of an item is a use of the parameter.
    ///
    /// # Errors
    /// [`TemplateError`] of the first expression that cannot be replaced.
    pub(super) fn items(&self, value: &Value, unpacking: Unpacking) -> Result<Node, TemplateError> {
        Ok(match value {
            Value::Map(entries) => {
                let mut items = Keyed::default();
                for (key, value) in entries {
                    let key = template::resolve_text(key, &mut self.clone(), Place::Items, unpacking)?;
                    items.set(text(&key), self.items(value, unpacking)?);
                }
                Node::map(items.into_entries())
            }
            Value::List(values) => {
                let items = values.iter().map(|value| self.items(value, unpacking)).collect::<Result<_, _>>()?;
                Node::List(Rc::new(items), Source::default())
            }
            Value::String(text) if let Some(node) = template::reference(text).and_then(|keys| self.node(&keys)) => {
                node.clone()
            }
            other => Node::own(template::resolve(other, &mut self.clone(), Place::Items, unpacking)?),
        })
    }

    fn node(&self, keys: &[&str]) -> Option<&Node> {
        let (first, rest) = keys.split_first()?;
        let mut entries = self.iteration.iter().chain(self.entries.iter());
        let root = entries.find(|(key, _)| key == first).map(|(_, node)| node)?;
        rest.iter().try_fold(root, |node, key| node.step(key))
    }

    /// Removes and returns the record of variables that were used.
    pub(super) fn take_used(&mut self) -> UsedVariables {
        std::mem::take(&mut self.used)
    }

    /// Loads the entries of `vars`; `stage` is the name of the stage that has them. Paths are relative to `folder`.
    ///
    /// # Errors
    /// The reason, or an error of a file.
    pub(super) fn load(
        &mut self,
        files: &mut Files<'_>,
        vars: &[Value],
        folder: &Path,
        stage: Option<&str>,
    ) -> Result<Result<(), LoadError>, DataError> {
        for (i, item) in vars.iter().enumerate() {
            let loaded = match item {
                Value::String(text) => self.load_file(files, text, folder)?,
                map => {
                    let source = stage.map_or_else(|| format!("vars[{i}]"), |stage| format!("{stage}.vars[{i}]"));
                    let source: Rc<str> = source.into();
                    let entries = map
                        .entries()
                        .iter()
                        .map(|(key, value)| (key.clone(), Node::new(value.clone(), Source::new(&source, key, false))));
                    let entries = entries.collect();
                    self.merge(entries)
                }
            };
            if let Err(reason) = loaded {
                return Ok(Err(reason));
            }
        }
        Ok(Ok(()))
    }

    /// Loads a parameter file, or keys of it: `FILE` or `FILE:KEY,KEY`.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(super) fn load_file(
        &mut self,
        files: &mut Files<'_>,
        item: &str,
        folder: &Path,
    ) -> Result<Result<(), LoadError>, DataError> {
        let (path, keys) = item.split_once(':').unwrap_or((item, ""));
        let path = crate::config::normalise(&folder.join(path));
        let keys: Vec<String> = keys.split(',').filter(|key| !key.is_empty()).map(str::to_owned).collect();
        if let Some((_, loaded)) = self.imports.iter().find(|(known, _)| *known == path) {
            match loaded {
                None if keys.is_empty() => return Ok(Ok(())),
                None => return Ok(Err(format!("cannot partially load '{item}' as it's already loaded."))),
                Some(loaded) if keys.is_empty() || keys.iter().any(|key| loaded.contains(key)) => {
                    return Ok(Err(format!("cannot load '{item}' as it's partially loaded already")));
                }
                Some(_) => {}
            }
        }
        let shown = files.display(&path);
        let Some(value) = files.params(&path)? else { return Ok(Err(format!("'{shown}' does not exist"))) };
        let Value::Map(entries) = value else {
            return Ok(Err(format!("expected a dictionary, got '{}' in file '{shown}'", type_name(value))));
        };
        let source: Rc<str> = shown.as_str().into();
        let node =
            |key: &str, value: &Value| (key.to_owned(), Node::new(value.clone(), Source::new(&source, key, true)));
        let mut nodes = Vec::new();
        for key in &keys {
            let Some((_, value)) = entries.iter().find(|(name, _)| name == key) else {
                return Ok(Err(format!("could not find '{key}' in '{shown}'")));
            };
            nodes.push(node(key, value));
        }
        if keys.is_empty() {
            nodes.extend(entries.iter().map(|(key, value)| node(key, value)));
        }
        if let Err(reason) = self.merge(nodes) {
            return Ok(Err(reason));
        }
        match self.imports.iter_mut().find(|(known, _)| *known == path) {
            Some((_, Some(loaded))) => loaded.extend(keys),
            Some(_) => {}
            None => self.imports.push((path, (!keys.is_empty()).then_some(keys))),
        }
        Ok(Ok(()))
    }

    fn merge(&mut self, nodes: Vec<(String, Node)>) -> Result<(), LoadError> {
        let is_reserved = |key: &String| self.iteration.iter().any(|(reserved, _)| reserved == key);
        if let Some((key, _)) = nodes.iter().find(|(key, _)| is_reserved(key)) {
            return Err(format!("attempted to modify reserved key '{key}'"));
        }
        merge(Rc::make_mut(&mut self.entries), nodes, "")
    }
}

/// Adds variables; dictionaries are merged.
fn merge(into: &mut Vec<(String, Node)>, nodes: Vec<(String, Node)>, prefix: &str) -> Result<(), LoadError> {
    let mut places: HashMap<String, usize> =
        into.iter().enumerate().map(|(place, (key, _))| (key.clone(), place)).collect();
    for (key, node) in nodes {
        let Some(place) = places.get(&key) else {
            places.insert(key.clone(), into.len());
            into.push((key, node));
            continue;
        };
        let path = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
        match (&mut into[*place].1, node) {
            (Node::Map(old), Node::Map(new)) => merge(Rc::make_mut(old), Rc::unwrap_or_clone(new), &path)?,
            (old, new) => {
                let name = |node: &Node| node.source().and_then(|source| source.name.clone()).unwrap_or_default();
                return Err(format!(
                    "cannot redefine '{path}' from '{}' as it already exists in '{}'",
                    name(&new),
                    name(old)
                ));
            }
        }
    }
    Ok(())
}

impl Lookup for Context {
    fn find(&mut self, keys: &[&str], name: &str) -> Result<Value, TemplateError> {
        let node = self.node(keys).ok_or_else(|| TemplateError::NotFound(name.to_owned()))?;
        self.take_bytes(node.bytes())?;
        let value = node.to_value();
        // As in DVC, a use of a dictionary is not recorded.
        if let Node::Scalar(_, source) | Node::List(_, source) = node
            && let (Some(file), true) = (&source.name, source.is_file)
        {
            let (file, path) = (file.to_string(), source.path());
            match self.used.iter_mut().find(|(known, _)| *known == file) {
                Some((_, keys)) if keys.contains(&path) => {}
                Some((_, keys)) => keys.push(path),
                None => self.used.push((file, vec![path])),
            }
        }
        Ok(value)
    }

    fn take(&mut self, bytes: usize) -> Result<(), TemplateError> {
        self.take_bytes(bytes)
    }
}
