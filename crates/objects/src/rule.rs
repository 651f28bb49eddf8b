//! Rules of a schema in the Common Expression Language (`x-kubernetes-validations`).
//!
//! Source: the documentation of validation rules of custom resource definitions. A rule that uses `oldSelf` is checked only where the object
//! had a value before.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use cel::{Context, Program};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A rule about a value and its earlier value.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Rule {
    /// The expression, about the variables `self` and `oldSelf`.
    pub rule: String,
    /// The error of a value that breaks the rule.
    pub message: String,
    /// The parsed expression, or why it cannot be parsed.
    #[serde(skip)]
    program: OnceLock<Result<Arc<Program>, String>>,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Rule").field(&self.rule).finish()
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        (&self.rule, &self.message) == (&other.rule, &other.message)
    }
}

impl Rule {
    /// Why a value breaks the rule; `None` if it does not.
    pub fn fault(&self, new: &Value, old: Option<&Value>) -> Option<String> {
        if self.rule.contains("oldSelf") && old.is_none() {
            return None;
        }
        let parse = || Program::compile(&self.rule).map(Arc::new).map_err(|error| error.to_string());
        let program = match self.program.get_or_init(parse) {
            Ok(program) => program,
            Err(error) => return Some(format!("the rule {:?} cannot be read: {error}", self.rule)),
        };
        let mut context = Context::default();
        context.add_variable_from_value("self", to_cel(new));
        if let Some(old) = old {
            context.add_variable_from_value("oldSelf", to_cel(old));
        }
        match program.execute(&context) {
            Ok(cel::Value::Bool(true)) => None,
            Ok(cel::Value::Bool(false)) => Some(self.message.clone()),
            Ok(_) => Some(format!("the rule {:?} is not a condition", self.rule)),
            Err(error) => Some(format!("the rule {:?} cannot be evaluated: {error}", self.rule)),
        }
    }
}

fn to_cel(value: &Value) -> cel::Value {
    match value {
        Value::Null => cel::Value::Null,
        Value::Bool(value) => cel::Value::Bool(*value),
        Value::Number(number) => match number.as_i64() {
            Some(number) => cel::Value::Int(number),
            None => cel::Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => cel::Value::from(text.as_str()),
        Value::Array(values) => cel::Value::from(values.iter().map(to_cel).collect::<Vec<_>>()),
        Value::Object(fields) => {
            cel::Value::from(fields.iter().map(|(key, value)| (key.clone(), to_cel(value))).collect::<HashMap<_, _>>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules_compare_a_value_with_its_earlier_one() {
        let rule = |rule: &str| Rule { rule: rule.into(), message: "broken".into(), ..Rule::default() };
        let same = rule("self == oldSelf");
        assert_eq!(same.fault(&json!(["a"]), None), None);
        assert_eq!(same.fault(&json!(["a"]), Some(&json!(["a"]))), None);
        assert_eq!(same.fault(&json!(["a"]), Some(&json!(["b"]))).as_deref(), Some("broken"));
        let short = rule("self.metadata.name.size() <= 3");
        assert_eq!(short.fault(&json!({"metadata": {"name": "abc"}}), None), None);
        assert!(short.fault(&json!({"metadata": {"name": "abcd"}}), None).is_some());
        assert!(rule("self.(").fault(&json!({}), None).unwrap().contains("cannot be read"));
    }
}
