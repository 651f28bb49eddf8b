//! A `dvc.yaml`: its stages with all templates expanded, and its other sections.

use std::path::{Path, PathBuf};

use super::context::{Context, DEFAULT_PARAMS_FILE, LoadError, Node};
use super::files::Files;
use super::keyed::Keyed;
use super::schema;
use super::template::{self, Place, TemplateError, Unpacking};
use super::value::{canonical, text as text_of, type_name};
use crate::config::{Config, normalise};
use crate::error::DataError;
use crate::stage::UsedVariables;
use crate::yaml::{self, Value};

/// Maximum number of stages that a file may expand to.
const MAX_STAGES: usize = 100_000;
/// Separates the name of a group of stages from the key of one of them.
pub const JOIN: &str = "@";

/// The parts of the key of a combination of a matrix, and its item.
type Combination = (Vec<String>, Vec<(String, Node)>);

/// A `dvc.yaml` that was read.
#[derive(Debug)]
pub struct PipelineFile {
    path: PathBuf,
    /// The path for the user.
    shown: String,
    text: String,
    value: Value,
    context: Context,
    unpacking: Unpacking,
}

/// A stage with its templates expanded.
#[derive(Debug, Clone)]
pub struct Expanded {
    /// The name, for a stage of a group with the key of its iteration.
    pub name: String,
    /// The definition, as a file without templates would have it, without `vars`.
    pub value: Value,
    /// The parameters that its templates use, by file.
    pub used: UsedVariables,
    /// Whether the definition differs from what is written, so that it cannot be edited.
    pub is_parametrized: bool,
    /// The line of the definition.
    pub line: usize,
}

/// How `parsing` of the configuration unpacks dictionaries.
pub fn unpacking(config: &Config) -> Unpacking {
    Unpacking {
        negated_flags: config
            .get("parsing", "bool")
            .is_some_and(|value| value.eq_ignore_ascii_case("boolean_optional")),
        repeated_options: config.get("parsing", "list").is_some_and(|value| value.eq_ignore_ascii_case("append")),
    }
}

impl PipelineFile {
    /// Reads the text of a `dvc.yaml`, and the parameter files that it names.
    ///
    /// # Errors
    /// [`DataError::File`] with the line.
    pub fn parse(path: &Path, text: &str, files: &mut Files<'_>, unpacking: Unpacking) -> Result<Self, DataError> {
        let value = yaml::parse(text).map_err(|error| DataError::file(path, error.line, error.reason))?;
        let value = match canonical(value) {
            Value::Null => Value::Map(Vec::new()),
            value => value,
        };
        let mut file = Self {
            path: path.to_owned(),
            shown: files.display(path),
            text: text.to_owned(),
            value,
            context: Context::new(files.allowance()),
            unpacking,
        };
        if let Err(invalid) = schema::check(&file.value) {
            let place =
                if invalid.path.is_empty() { String::new() } else { format!(", in {}", invalid.path.join(" -> ")) };
            return Err(file.error(&invalid.path, format!("{}{place}", invalid.reason)));
        }
        let folder = file.folder().to_owned();
        let mut context = file.context.clone();
        if files.params(&folder.join(DEFAULT_PARAMS_FILE))?.is_some() {
            let loaded = context.load_file(files, DEFAULT_PARAMS_FILE, &folder)?;
            loaded.map_err(|reason| file.failed(&["vars"], "vars", &reason))?;
        }
        let vars = file.value.get("vars").map_or(&[][..], Value::items);
        file.reject_templates(vars, &["vars"])?;
        let loaded = context.load(files, vars, &folder, None)?;
        loaded.map_err(|reason| file.failed(&["vars"], "vars", &reason))?;
        file.context = context;
        Ok(file)
    }

    /// The folder of the file.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    fn error(&self, place: &[String], reason: impl Into<String>) -> DataError {
        DataError::file(&self.path, yaml::line_of(&self.text, place), reason)
    }

    /// The error in DVC's words: `failed to parse 'WHAT' in 'dvc.yaml': REASON`.
    fn failed(&self, place: &[&str], what: &str, reason: &str) -> DataError {
        let place: Vec<String> = place.iter().map(|step| (*step).to_owned()).collect();
        self.error(&place, format!("failed to parse '{what}' in '{}': {reason}", self.shown))
    }

    fn reject_templates(&self, vars: &[Value], place: &[&str]) -> Result<(), DataError> {
        fn has_template(value: &Value) -> bool {
            match value {
                Value::String(text) => template::is_interpolated(text),
                Value::List(items) => items.iter().any(has_template),
                Value::Map(entries) => {
                    entries.iter().any(|(key, value)| template::is_interpolated(key) || has_template(value))
                }
                _ => false,
            }
        }
        if vars.iter().any(has_template) {
            return Err(self.failed(place, &place.join("."), "interpolating is not allowed"));
        }
        Ok(())
    }

    /// The stages with all templates expanded, in the order of the file.
    ///
    /// # Errors
    /// [`DataError::File`] with the line of the stage or key that cannot be expanded.
    pub fn stages(&self, files: &mut Files<'_>) -> Result<Vec<Expanded>, DataError> {
        let mut stages = Vec::new();
        let definitions = self.value.get("stages").map_or(&[][..], Value::entries);
        let lines = yaml::lines_in(&self.text, "stages");
        for (name, definition) in definitions {
            let line = lines.get(name).copied().unwrap_or_default();
            if let Some(items) = definition.get("foreach") {
                let template = definition.get("do").unwrap_or(&Value::Null);
                self.check(name, template, &["do"])?;
                let items = self.iteration(name, items)?;
                self.check_count(name, stages.len(), items.len())?;
                for (key, item, has_key) in items {
                    let mut context = self.context.clone();
                    context.set("item", item);
                    if has_key {
                        context.set("key", Node::own(Value::String(key.clone())));
                    }
                    stages.push(self.expand((name, line), Some(&key), template, context, files)?);
                }
            } else if let Some(matrix) = definition.get("matrix") {
                let entries = definition.entries().iter().filter(|(key, _)| key != "matrix").cloned().collect();
                let template = Value::Map(entries);
                self.check(name, &template, &[])?;
                let items = self.combinations(name, matrix)?;
                self.check_count(name, stages.len(), items.len())?;
                for (key, item) in items {
                    let mut context = self.context.clone();
                    context.set("key", Node::own(Value::String(key.clone())));
                    context.set("item", item);
                    stages.push(self.expand((name, line), Some(&key), &template, context, files)?);
                }
            } else {
                self.check(name, definition, &[])?;
                self.check_count(name, stages.len(), 1)?;
                stages.push(self.expand((name, line), None, definition, self.context.clone(), files)?);
            }
        }
        Ok(stages)
    }

    /// Fails if a file has too many stages with those of a group, before they are expanded.
    fn check_count(&self, name: &str, before: usize, added: usize) -> Result<(), DataError> {
        match before + added > MAX_STAGES {
            true => Err(self.failed(&["stages", name], &format!("stages.{name}"), "there are too many stages")),
            false => Ok(()),
        }
    }

    fn check(&self, name: &str, template: &Value, below: &[&str]) -> Result<(), DataError> {
        for (key, value) in template.entries() {
            template::check(value).map_err(|error| {
                let place: Vec<&str> = ["stages", name].iter().chain(below).copied().chain([key.as_str()]).collect();
                self.failed(&place, &format!("stages.{name}.{key}"), &error.to_string())
            })?;
        }
        Ok(())
    }

    /// The keys and items of `foreach`, and whether the keys are variables, too.
    fn iteration(&self, name: &str, items: &Value) -> Result<Vec<(String, Node, bool)>, DataError> {
        let place = ["stages", name, "foreach"];
        let what = format!("stages.{name}.foreach");
        let failed = |error: TemplateError| self.failed(&place, &what, &error.to_string());
        match self.context.items(items, self.unpacking).map_err(failed)? {
            Node::Map(entries) => Ok(entries.iter().map(|(key, value)| (key.clone(), value.clone(), true)).collect()),
            Node::List(items, _) => {
                let by_index = items.iter().any(|item| !matches!(item, Node::Scalar(..)));
                let mut keyed = Keyed::default();
                for (i, item) in items.iter().enumerate() {
                    let key = match by_index {
                        true => i.to_string(),
                        false => template::to_text(&item.to_value(), self.unpacking).map_err(failed)?,
                    };
                    if !keyed.has(&key) {
                        keyed.set(key, item.clone());
                    }
                }
                Ok(keyed.into_entries().into_iter().map(|(key, item)| (key, item, false)).collect())
            }
            Node::Scalar(other, _) => {
                let place: Vec<String> = place.iter().map(|step| (*step).to_owned()).collect();
                let reason = format!("expected list/dictionary, got {}", type_name(&other));
                Err(self.error(&place, format!("failed to resolve '{what}' in '{}': {reason}", self.shown)))
            }
        }
    }

    /// The combinations of a matrix: their keys and items.
    fn combinations(&self, name: &str, matrix: &Value) -> Result<Vec<(String, Node)>, DataError> {
        let place = ["stages", name, "matrix"];
        let what = format!("stages.{name}.matrix");
        let failed = |error: TemplateError| self.failed(&place, &what, &error.to_string());
        let resolved = self.context.items(matrix, self.unpacking).map_err(failed)?;
        let Node::Map(variables) = resolved else {
            return Err(self.failed(
                &place,
                &what,
                &format!("expected dictionary, got {}", type_name(&resolved.to_value())),
            ));
        };
        let mut combinations: Vec<Combination> = vec![(Vec::new(), Vec::new())];
        for (variable, values) in variables.iter() {
            let Node::List(values, _) = values else {
                let reason = format!("expected list for '{variable}', got {}", type_name(&values.to_value()));
                return Err(self.failed(&place, &what, &reason));
            };
            if combinations.len().saturating_mul(values.len()) > MAX_STAGES {
                return Err(self.failed(&place, &what, "there are too many stages"));
            }
            let mut next = Vec::new();
            for (fragments, item) in &combinations {
                for (i, value) in values.iter().enumerate() {
                    let fragment = match value {
                        Node::List(..) | Node::Map(_) => format!("{variable}{i}"),
                        Node::Scalar(scalar, _) => template::to_text(scalar, self.unpacking).map_err(failed)?,
                    };
                    let copied = fragments.iter().chain([&fragment]).map(String::len).sum::<usize>();
                    let names = item.iter().map(|(name, _)| name.len()).sum::<usize>() + variable.len();
                    self.context.take_bytes(copied + names).map_err(failed)?;
                    let (mut fragments, mut item) = (fragments.clone(), item.clone());
                    fragments.push(fragment);
                    item.push((variable.clone(), value.clone()));
                    next.push((fragments, item));
                }
            }
            combinations = next;
        }
        let mut keyed = Keyed::default();
        for (fragments, item) in combinations {
            keyed.set(fragments.join("-"), Node::map(item));
        }
        Ok(keyed.into_entries())
    }

    fn expand(
        &self,
        (group, line): (&str, usize),
        key: Option<&str>,
        definition: &Value,
        mut context: Context,
        files: &mut Files<'_>,
    ) -> Result<Expanded, DataError> {
        let name = key.map_or_else(|| group.to_owned(), |key| format!("{group}{JOIN}{key}"));
        let place = |key: &str| -> Vec<String> {
            let is_foreach = self.value.get("stages").and_then(|stages| stages.get(group)?.get("do")).is_some();
            let mut place = vec!["stages".to_owned(), group.to_owned()];
            place.extend(is_foreach.then(|| "do".to_owned()));
            place.push(key.to_owned());
            place
        };
        let failed = |key: &str, reason: String| {
            let message = format!("failed to parse 'stages.{name}.{key}' in '{}': {reason}", self.shown);
            self.error(&place(key), message)
        };
        context.take_bytes(name.len()).map_err(|error| failed("cmd", error.to_string()))?;
        let wdir = match definition.get("wdir").and_then(Value::as_str) {
            Some(wdir) => {
                let resolved = template::resolve_text(wdir, &mut context, Place::Other, self.unpacking);
                let resolved = resolved.map_err(|error| failed("wdir", error.to_string()))?;
                normalise(&self.folder().join(text_of(&resolved)))
            }
            None => self.folder().to_owned(),
        };
        if let Some(vars) = definition.get("vars") {
            self.reject_templates(vars.items(), &["stages", group, "vars"])?;
            let loaded: Result<(), LoadError> = context.load(files, vars.items(), &wdir, Some(&name))?;
            loaded.map_err(|reason| failed("vars", reason))?;
        }
        context.take_used(); // The use by `wdir` is recorded with the other keys.
        let mut resolved = Vec::new();
        for (key, value) in definition.entries().iter().filter(|(key, _)| key != "vars") {
            let place = if key == "cmd" { Place::Command } else { Place::Other };
            let value = template::resolve(value, &mut context, place, self.unpacking)
                .map_err(|error| failed(key, error.to_string()))?;
            resolved.push((key.clone(), value));
        }
        let value = Value::Map(resolved);
        let is_parametrized = key.is_some() || value != *definition;
        Ok(Expanded { name, value, used: context.take_used(), is_parametrized, line })
    }

    /// A section at the top with its templates expanded; `Null` if the file does not have it. Sections: `metrics`, `params` and `plots` are
    /// lists, `artifacts` is a mapping, `datasets` is a list.
    ///
    /// # Errors
    /// [`DataError::File`] with the line.
    pub fn section(&self, name: &str) -> Result<Value, DataError> {
        let Some(value) = self.value.get(name) else { return Ok(Value::Null) };
        let resolve = |index: &str, value: &Value| {
            template::check(value)
                .and_then(|()| template::resolve(value, &mut self.context.clone(), Place::Other, self.unpacking))
                .map_err(|error| self.failed(&[name, index], &format!("{name}.{index}"), &error.to_string()))
        };
        match value {
            Value::List(items) => {
                let items = items.iter().enumerate().map(|(i, item)| resolve(&i.to_string(), item));
                items.collect::<Result<_, _>>().map(Value::List)
            }
            Value::Map(entries) => {
                let mut resolved = Vec::new();
                for (key, value) in entries {
                    let entry = Value::Map(vec![(key.clone(), value.clone())]);
                    resolved.extend_from_slice(resolve(key, &entry)?.entries());
                }
                Ok(Value::Map(resolved))
            }
            other => Ok(other.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allowance::Allowance;

    fn parse(text: &str, params: &str) -> Result<(PipelineFile, Vec<Expanded>), DataError> {
        let read = |path: &Path| {
            let name = path.strip_prefix("/p").unwrap().to_str().unwrap().to_owned();
            Ok(match name.as_str() {
                "params.yaml" => Some(params.to_owned()),
                "sub/other.json" => Some(r#"{"o": {"x": 1, "y": [2]}, "z": 3}"#.to_owned()),
                _ => None,
            })
        };
        let mut files = Files::new(Path::new("/p"), &read);
        let file = PipelineFile::parse(Path::new("/p/dvc.yaml"), text, &mut files, Unpacking::default())?;
        let stages = file.stages(&mut files)?;
        Ok((file, stages))
    }

    #[test]
    fn templates_are_expanded() {
        let text = "vars:\n- sub/other.json:z\n- w: sub\nstages:\n  plain:\n    cmd: run ${z} ${model} \\${x}\n    wdir: ${w}\n    vars:\n    - other.json:o\n    deps: ['${o.x}.csv']\n  each:\n    foreach: ${list}\n    do:\n      cmd: x ${item}\n  keyed:\n    foreach: {a: {k: 1}, b: {k: 2}}\n    do: {cmd: 'x ${key} ${item.k}', frozen: true}\n  grid:\n    matrix: {m: [1, 2], f: ['${list[0]}', {n: 3}]}\n    cmd: x ${item.m} ${key}\n    outs: ['${item.m}-${item.f}']\n".replace("-${item.f}", "");
        let (_, stages) = parse(&text, "model: {lr: 1e-5, on: true}\nlist: [p, q]\n").unwrap();
        let shown: Vec<String> = stages
            .iter()
            .map(|stage| format!("{}: {}", stage.name, stage.value.get("cmd").and_then(Value::as_str).unwrap()))
            .collect();
        let expected = [
            "plain: run 3 --lr 1e-05 --on ${x}",
            "each@p: x p",
            "each@q: x q",
            "keyed@a: x a 1",
            "keyed@b: x b 2",
            "grid@1-p: x 1 1-p",
            "grid@1-f1: x 1 1-f1",
            "grid@2-p: x 2 2-p",
            "grid@2-f1: x 2 2-f1",
        ];
        assert_eq!(shown, expected);
        assert_eq!(stages[0].value.get("wdir"), Some(&Value::string("sub")));
        assert_eq!(stages[0].value.get("deps").unwrap().items(), [Value::string("1.csv")]);
        assert!(stages[0].used.iter().any(|(file, keys)| file == "sub/other.json" && keys == &["z", "o.x"]));
    }

    #[test]
    fn sections_are_expanded() {
        let (file, _) =
            parse("plots: ['${d}/p', {x: {title: '${d}'}}]\nartifacts: {'${d}': {path: m}}\n", "d: dir\n").unwrap();
        assert_eq!(file.section("plots").unwrap(), yaml::parse("[dir/p, {x: {title: dir}}]").unwrap());
        assert_eq!(file.section("artifacts").unwrap(), yaml::parse("{dir: {path: m}}").unwrap());
        assert_eq!(file.section("metrics").unwrap(), Value::Null);
    }

    fn failure(text: &str, params: &str) -> String {
        parse(text, params).map(|(_, stages)| stages.len()).unwrap_err().to_string()
    }

    #[test]
    fn templates_do_not_expand_to_more_than_is_read() {
        let value = "x".repeat(64 << 10);
        let params = format!("v: {value}\nlist: {:?}\n", (0..3000).collect::<Vec<_>>());
        for text in [
            format!("stages:\n  a:\n    cmd: {}\n", "${v}".repeat(3000)),
            "stages:\n  a:\n    foreach: ${list}\n    do: {cmd: '${v} ${item}'}\n".to_owned(),
            format!("stages:\n  a:\n    foreach: ${{list}}\n    do: {{cmd: 'a', desc: {value}}}\n"),
            format!("stages:\n  a:\n    matrix: {{x: ['{value}'], y: '${{list}}'}}\n    cmd: a\n"),
            format!("stages:\n  {value}:\n    foreach: ${{list}}\n    do: {{cmd: a}}\n"),
        ] {
            let reason = failure(&text, &params);
            assert!(reason.contains("expand to more than"), "{reason}");
        }
        let keys: String = (0..3000).map(|i| format!("    k{i}: 1\n")).collect();
        let reason = failure("stages:\n  a:\n    cmd: run ${d}\n", &format!("d:\n  {value}:\n{keys}"));
        assert!(reason.contains("options of more than"), "{reason}");
    }

    #[test]
    fn stages_are_counted_before_they_are_expanded() {
        let items: String = (0..=MAX_STAGES).map(|i| format!("- {i}\n")).collect();
        let params = format!("list:\n{items}");
        for group in ["foreach: ${list}\n    do: {cmd: '${item}'}", "matrix: {x: '${list}'}\n    cmd: a"] {
            let reason = failure(&format!("stages:\n  a:\n    {group}\n"), &params);
            assert!(reason.contains("too many stages"), "{reason}");
        }
    }

    #[test]
    fn templates_are_not_expanded_for_a_client_that_is_gone() {
        let (allowance, stop) = Allowance::of_request();
        let read = |_: &Path| Ok(None);
        let mut files = Files::new(Path::new("/p"), &read).within(&allowance);
        let text = "stages:\n  a:\n    cmd: x\n";
        let file = PipelineFile::parse(Path::new("/p/dvc.yaml"), text, &mut files, Unpacking::default()).unwrap();
        assert_eq!(file.stages(&mut files).unwrap().len(), 1);
        drop(stop);
        assert!(file.stages(&mut files).unwrap_err().to_string().contains("its client is gone"));
    }

    #[test]
    fn errors_have_the_line() {
        for (text, line, part) in [
            ("stages:\n  a:\n    cmd: x\n    deps: [\"${no}\"]\n", 4, "Could not find 'no'"),
            ("stages:\n  a:\n    cmd: ${list}\n", 3, "Cannot interpolate data of type 'list'"),
            ("stages:\n  a:\n    foreach: ${n}\n    do:\n      cmd: x\n", 3, "expected list/dictionary, got int"),
            ("stages:\n  a:\n    foreach: [1]\n    do:\n      cmd: ${\\n}\n", 5, "is not an expression"),
            (
                "vars:\n- n: 2\nstages: {}\n",
                1,
                "cannot redefine 'n' from 'vars[0]' as it already exists in 'params.yaml'",
            ),
            ("vars:\n- missing.yaml\n", 1, "'missing.yaml' does not exist"),
            ("vars:\n- ${x}.yaml\n", 1, "interpolating is not allowed"),
            ("stages:\n  a:\n    cmd: x\n    nonsense: 1\n", 4, "extra keys not allowed, in stages -> a -> nonsense"),
        ] {
            let text = text.replace("\\n", "a..b");
            let Err(DataError::File { line: found, reason, .. }) = parse(&text, "n: 1\nlist: [1]\n") else {
                unreachable!("{text}")
            };
            assert_eq!(found, line, "{text}: {reason}");
            assert!(reason.contains(part), "{reason}");
        }
    }
}
