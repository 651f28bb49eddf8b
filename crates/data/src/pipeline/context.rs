//! The variables of a `dvc.yaml`: those of its `vars`, of parameter files, and of the iteration of a stage.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::files::Files;
use super::template::{self, Lookup, Place, TemplateError, Unpacking};
use super::value::{text, type_name};
use crate::error::DataError;
use crate::stage::UsedVariables;
use crate::yaml::Value;

/// The parameter file that is used if none is named.
pub const DEFAULT_PARAMS_FILE: &str = "params.yaml";

/// A variable with the place that defines it.
#[derive(Debug, Clone)]
pub(super) enum Node {
    Scalar(Value, Rc<Source>),
    List(Vec<Self>, Rc<Source>),
    Map(Vec<(String, Self)>),
}

/// Where a variable is defined.
#[derive(Debug)]
pub(super) struct Source {
    /// The parameter file, or the entry of `vars`; `None` for an iteration.
    name: Option<String>,
    /// The keys that lead to the variable.
    path: String,
    /// Whether `name` is a parameter file.
    is_file: bool,
}

impl Node {
    fn new(value: Value, name: Option<&str>, path: &str, is_file: bool) -> Self {
        let source = || Rc::new(Source { name: name.map(str::to_owned), path: path.to_owned(), is_file });
        let inner = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        match value {
            Value::Map(entries) => Self::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| {
                        let node = Self::new(value, name, &inner(&key), is_file);
                        (key, node)
                    })
                    .collect(),
            ),
            Value::List(items) => {
                let items = items.into_iter().enumerate();
                Self::List(
                    items.map(|(i, item)| Self::new(item, name, &inner(&i.to_string()), is_file)).collect(),
                    source(),
                )
            }
            scalar => Self::Scalar(scalar, source()),
        }
    }

    /// A value of `foreach` or `matrix`, or of the iteration, that no parameter file has.
    pub(super) fn own(value: Value) -> Self {
        Self::new(value, None, "", false)
    }

    pub(super) fn to_value(&self) -> Value {
        match self {
            Self::Scalar(value, _) => value.clone(),
            Self::List(items, _) => Value::List(items.iter().map(Self::to_value).collect()),
            Self::Map(entries) => {
                Value::Map(entries.iter().map(|(key, node)| (key.clone(), node.to_value())).collect())
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

/// A set of variables.
#[derive(Debug, Clone, Default)]
pub(super) struct Context {
    entries: Vec<(String, Node)>,
    /// The loaded parameter files, and which of their keys if not all.
    imports: Vec<(PathBuf, Option<Vec<String>>)>,
    /// Variables of the iteration, which nothing may redefine.
    reserved: Vec<String>,
    used: UsedVariables,
}

/// Why variables cannot be loaded.
pub(super) type LoadError = String;

impl Context {
    /// Sets a variable of an iteration, for this copy of the context.
    pub(super) fn set(&mut self, key: &str, node: Node) {
        match self.entries.iter_mut().find(|(name, _)| name == key) {
            Some(entry) => entry.1 = node,
            None => self.entries.push((key.to_owned(), node)),
        }
        self.reserved.push(key.to_owned());
    }

    /// Expands the templates of `foreach` or `matrix`. A variable in them keeps its place, so that the use of an item is a use of the parameter.
    ///
    /// # Errors
    /// [`TemplateError`] of the first expression that cannot be replaced.
    pub(super) fn items(&self, value: &Value, unpacking: Unpacking) -> Result<Node, TemplateError> {
        Ok(match value {
            Value::Map(entries) => {
                let mut items: Vec<(String, Node)> = Vec::with_capacity(entries.len());
                for (key, value) in entries {
                    let key = template::resolve_text(key, &mut self.clone(), Place::Items, unpacking)?;
                    let (key, item) = (text(&key), self.items(value, unpacking)?);
                    match items.iter_mut().find(|(known, _)| *known == key) {
                        Some(entry) => entry.1 = item,
                        None => items.push((key, item)),
                    }
                }
                Node::Map(items)
            }
            Value::List(values) => {
                let items = values.iter().map(|value| self.items(value, unpacking)).collect::<Result<_, _>>()?;
                Node::List(items, Rc::new(Source { name: None, path: String::new(), is_file: false }))
            }
            Value::String(text) if let Some(node) = template::reference(text).and_then(|keys| self.node(&keys)) => {
                node.clone()
            }
            other => Node::own(template::resolve(other, &mut self.clone(), Place::Items, unpacking)?),
        })
    }

    fn node(&self, keys: &[&str]) -> Option<&Node> {
        let (first, rest) = keys.split_first()?;
        let root = self.entries.iter().find(|(key, _)| key == first).map(|(_, node)| node)?;
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
                    let entries = map
                        .entries()
                        .iter()
                        .map(|(key, value)| (key.clone(), Node::new(value.clone(), Some(&source), key, false)));
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
        let mut nodes = Vec::new();
        for key in &keys {
            let Some((_, value)) = entries.iter().find(|(name, _)| name == key) else {
                return Ok(Err(format!("could not find '{key}' in '{shown}'")));
            };
            nodes.push((key.clone(), Node::new(value.clone(), Some(&shown), key, true)));
        }
        if keys.is_empty() {
            nodes.extend(
                entries.iter().map(|(key, value)| (key.clone(), Node::new(value.clone(), Some(&shown), key, true))),
            );
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
        if let Some((key, _)) = nodes.iter().find(|(key, _)| self.reserved.contains(key)) {
            return Err(format!("attempted to modify reserved key '{key}'"));
        }
        merge(&mut self.entries, nodes, "")
    }
}

/// Adds variables; dictionaries are merged.
fn merge(into: &mut Vec<(String, Node)>, nodes: Vec<(String, Node)>, prefix: &str) -> Result<(), LoadError> {
    for (key, node) in nodes {
        let Some((_, old)) = into.iter_mut().find(|(name, _)| *name == key) else {
            into.push((key, node));
            continue;
        };
        let path = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
        match (old, node) {
            (Node::Map(old), Node::Map(new)) => merge(old, new, &path)?,
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
        let value = node.to_value();
        // As in DVC, a use of a dictionary is not recorded.
        if let Node::Scalar(_, source) | Node::List(_, source) = node
            && let (Some(file), true) = (&source.name, source.is_file)
        {
            let (file, path) = (file.clone(), source.path.clone());
            match self.used.iter_mut().find(|(known, _)| *known == file) {
                Some((_, keys)) if keys.contains(&path) => {}
                Some((_, keys)) => keys.push(path),
                None => self.used.push((file, vec![path])),
            }
        }
        Ok(value)
    }
}
