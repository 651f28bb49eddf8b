//! Checks the parameters of a run against the inputs that its pipeline declares.

use serde_json::{Map, Value};

use crate::Error;
use crate::ir::read::Document;
use crate::value::{self, Kind};

/// Maximum bytes of all parameters of a run, as JSON.
const MAX_PARAMETERS: usize = 1 << 20;

/// Checks the parameters of a run. Types must be exact: a text is not made a number.
///
/// # Errors
/// [`Error::Invalid`] for a missing, additional or ill-typed parameter, in the words of Kubeflow's server.
pub(super) fn check(document: &Document, parameters: &Map<String, Value>) -> Result<(), Error> {
    let size: usize = parameters.iter().map(|(name, value)| name.len() + value.to_string().len()).sum();
    for (name, value) in parameters {
        value::check_depth(value).map_err(|reason| Error::Invalid(format!("input parameter {name}: {reason}")))?;
    }
    if size > MAX_PARAMETERS {
        return Err(Error::Invalid(format!("The input parameter length exceed maximum size of {MAX_PARAMETERS}")));
    }
    let inputs = document.spec.root.as_ref().and_then(|root| root.input_definitions.as_ref());
    let mut additional: Vec<&str> = parameters.keys().map(String::as_str).collect();
    for (name, declared) in inputs.iter().flat_map(|inputs| &inputs.parameters) {
        additional.retain(|given| given != name);
        let Some(given) = parameters.get(name) else {
            if !declared.is_optional && declared.default_value.is_none() {
                return Err(Error::Invalid(format!(
                    "parameter {name} is not optional, yet has neither default value nor user provided value"
                )));
            }
            continue;
        };
        let Some(kind) = value::kind(declared.parameter_type) else {
            return Err(Error::Invalid(format!("input parameter {name} has unspecified type")));
        };
        if kind == Kind::TaskFinalStatus {
            return Err(Error::Invalid(format!(
                "input parameter {name} requires type TASK_FINAL_STATUS, which is invalid for root component"
            )));
        }
        if value::check_exact(kind, given).is_err() {
            return Err(Error::Invalid(mismatch(name, kind)));
        }
        value::check_literals(&declared.literals, given)
            .map_err(|reason| Error::Invalid(format!("input parameter {name}: {reason}")))?;
    }
    if !additional.is_empty() {
        return Err(Error::Invalid(format!(
            "parameter(s) provided are not required by pipeline: {}",
            additional.join(", ")
        )));
    }
    Ok(())
}

fn mismatch(name: &str, kind: Kind) -> String {
    let (required, what, is_not) = match kind {
        Kind::Integer | Kind::Double => ("double or integer", "parameter value", "number"),
        Kind::String => ("string", "input parameter", "string"),
        Kind::Boolean => ("bool", "input parameter", "bool"),
        Kind::List => ("list", "input parameter", "list"),
        Kind::Struct => ("struct", "input parameter", "struct"),
        Kind::TaskFinalStatus | Kind::TaskConfig => return format!("input parameter {name} requires type unknown"),
    };
    format!("input parameter {name} requires type {required}, but the {what} is not of {is_not} value type")
}
