//! Conditions of tasks and selectors of inputs, in the Common Expression Language.
//!
//! The evaluator is dynamically typed, while Kubeflow's checks the types of an expression first. So [`Condition::parse`] refuses what is
//! known to be a comparison of different types, such as `int(x) == 'a'`, which would otherwise be false without a word. Parameters have no
//! static type: a string parameter is simply not equal to a number.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators as op};
use cel::{Context, Env, ExecutionError, Program};
use serde_json::{Map, Value};

use crate::executor_input::artifact_json;
use crate::model::Inputs;
use crate::value::{self, to_text};

/// Maximum bytes of an expression.
pub const MAX_BYTES: usize = 16 << 10;
/// Maximum number of macros such as `all` inside each other. Each one multiplies the time by the length of a list.
const MAX_MACRO_DEPTH: usize = 2;

/// The condition of a task, compiled.
#[derive(Debug)]
pub struct Condition {
    program: Program,
}

impl Condition {
    /// Compiles a condition.
    ///
    /// # Errors
    /// The text is not an expression, refers to something else than `inputs` and `outputs`, or has a known error of types.
    pub fn parse(text: &str) -> Result<Self, String> {
        let program = compile(text, &["inputs", "outputs"])?;
        match static_type(program.expression(), 0)? {
            Type::Bool | Type::Dynamic => Ok(Self { program }),
            other => Err(format!("the condition is of type {}; expected bool", other.name())),
        }
    }

    /// Whether the task is triggered.
    ///
    /// # Errors
    /// The evaluation failed, as for a parameter without a value or an ordering of different types. The task fails then.
    pub fn evaluate(&self, inputs: &Inputs) -> Result<bool, String> {
        let mut context = context();
        context.add_variable_from_value("inputs", to_cel(&inputs_json(inputs)));
        context.add_variable_from_value("outputs", to_cel(&Value::Object(Map::new())));
        match self.program.execute(&context) {
            Ok(cel::Value::Bool(value)) => Ok(value),
            Ok(other) => Err(format!("the condition is of type {}; expected bool", other.type_of())),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Applies a `parameterExpressionSelector`, such as `parseJson(string_value)["key"]`, to a value.
///
/// # Errors
/// The text is not an expression, or its evaluation failed.
pub fn select(expression: &str, value: &Value) -> Result<Value, String> {
    let program = compile_selector(expression)?;
    let mut context = context();
    let field = match value {
        Value::Null => "null_value",
        Value::Bool(_) => "bool_value",
        Value::Number(_) => "number_value",
        // The text of a value is always available, whatever its type.
        Value::String(_) => "string_value",
        Value::Array(_) => "list_value",
        Value::Object(_) => "struct_value",
    };
    context.add_variable_from_value(field, to_cel(value));
    context.add_variable_from_value("string_value", cel::Value::from(to_text(value)));
    let selected = program.execute(&context).map_err(|error| error.to_string())?;
    from_cel(&selected).map(|value| value::normalized(&value))
}

/// Checks that a selector can be compiled.
///
/// # Errors
/// The text is not an expression over the fields of a value.
pub fn check_selector(expression: &str) -> Result<(), String> {
    compile_selector(expression).map(drop)
}

fn compile_selector(expression: &str) -> Result<Program, String> {
    let fields = ["null_value", "bool_value", "number_value", "string_value", "list_value", "struct_value"];
    let program = compile(expression, &fields)?;
    static_type(program.expression(), 0)?;
    Ok(program)
}

fn environment() -> Arc<Env> {
    static ENVIRONMENT: LazyLock<Arc<Env>> =
        LazyLock::new(|| Arc::new(Env::default().with_optional_support(false).with_stdlib()));
    ENVIRONMENT.clone()
}

fn context() -> Context<'static, 'static> {
    let mut context = Context::with_env(environment());
    context
        .add_function("parseJson", |text: Arc<String>| match serde_json::from_str(&text) {
            Ok(value) => Ok(to_cel(&value)),
            Err(error) => Err(ExecutionError::function_error("parseJson", error)),
        })
        .expect("the standard library has no function of this name");
    context
}

fn compile(text: &str, variables: &[&str]) -> Result<Program, String> {
    if text.len() > MAX_BYTES {
        return Err(format!("the expression has {} bytes; the limit is {MAX_BYTES}", text.len()));
    }
    let program = environment().compile(text).map_err(|errors| match errors.errors.first() {
        // The columns of the parser are those of the expression, not of the file.
        Some(error) => format!("syntax error at column {} of the expression: {}", error.pos.1, error.msg),
        None => "syntax error".to_owned(),
    })?;
    let references = program.references();
    if let Some(unknown) =
        references.variables().into_iter().find(|name| !variables.contains(name) && !name.starts_with('@'))
    {
        return Err(format!("undeclared reference to '{unknown}'"));
    }
    let unknown =
        |name: &&str| *name != "parseJson" && !environment_has(name) && !name.contains('_') && !name.starts_with('@');
    if let Some(unknown) = references.functions().into_iter().find(unknown) {
        return Err(format!("undeclared reference to the function '{unknown}'"));
    }
    Ok(program)
}

/// Whether a function of the standard library has this name.
fn environment_has(name: &str) -> bool {
    const FUNCTIONS: &[&str] = &[
        "size",
        "contains",
        "startsWith",
        "endsWith",
        "matches",
        "int",
        "uint",
        "double",
        "string",
        "bytes",
        "bool",
        "dyn",
        "type",
        "has",
        "all",
        "exists",
        "exists_one",
        "map",
        "filter",
        "duration",
        "timestamp",
    ];
    FUNCTIONS.contains(&name)
}

/// What is known of the type of an expression before it is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Dynamic,
    Bool,
    Int,
    UInt,
    Double,
    String,
    Bytes,
    Null,
    List,
    Map,
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Self::Dynamic => "dyn",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::UInt => "uint",
            Self::Double => "double",
            Self::String => "string",
            Self::Bytes => "bytes",
            Self::Null => "null",
            Self::List => "list",
            Self::Map => "map",
        }
    }

    fn is(self, other: Self) -> bool {
        self == Self::Dynamic || other == Self::Dynamic || self == other
    }
}

/// The type of an expression, as far as it is known.
fn static_type(expression: &IdedExpr, macros: usize) -> Result<Type, String> {
    Ok(match &expression.expr {
        Expr::Unspecified => return Err("the expression is empty".into()),
        Expr::Ident(_) => Type::Dynamic,
        Expr::Literal(literal) => match literal {
            LiteralValue::Boolean(_) => Type::Bool,
            LiteralValue::Bytes(_) => Type::Bytes,
            LiteralValue::Double(_) => Type::Double,
            LiteralValue::Int(_) => Type::Int,
            LiteralValue::Null => Type::Null,
            LiteralValue::String(_) => Type::String,
            LiteralValue::UInt(_) => Type::UInt,
        },
        Expr::Select(select) => {
            static_type(&select.operand, macros)?;
            if let Expr::Ident(root) = &select.operand.expr
                && root == "inputs"
                && !matches!(select.field.as_str(), "parameter_values" | "parameters" | "artifacts")
            {
                return Err(format!("undefined field 'inputs.{}'", select.field));
            }
            if select.test { Type::Bool } else { Type::Dynamic }
        }
        Expr::List(list) => {
            for element in &list.elements {
                static_type(element, macros)?;
            }
            Type::List
        }
        Expr::Map(map) => {
            for entry in &map.entries {
                if let EntryExpr::MapEntry(entry) = &entry.expr {
                    static_type(&entry.key, macros)?;
                    static_type(&entry.value, macros)?;
                }
            }
            Type::Map
        }
        Expr::Struct(message) => return Err(format!("messages such as '{}' cannot be created", message.type_name)),
        Expr::Comprehension(comprehension) => {
            if macros == MAX_MACRO_DEPTH {
                return Err(format!("more than {MAX_MACRO_DEPTH} macros are inside each other"));
            }
            static_type(&comprehension.iter_range, macros)?;
            for part in [&comprehension.loop_cond, &comprehension.loop_step, &comprehension.result] {
                static_type(part, macros + 1)?;
            }
            Type::Dynamic
        }
        Expr::Call(call) => call_type(call, macros)?,
    })
}

fn call_type(call: &CallExpr, macros: usize) -> Result<Type, String> {
    if let Some(target) = &call.target {
        static_type(target, macros)?;
    }
    let arguments = call.args.iter().map(|argument| static_type(argument, macros)).collect::<Result<Vec<_>, _>>()?;
    let mismatch = || {
        let types: Vec<&str> = arguments.iter().map(|argument| argument.name()).collect();
        let name = call.func_name.trim_matches('_');
        Err(format!("'{name}' cannot be applied to ({}); convert one side, as with int(...)", types.join(", ")))
    };
    Ok(match (call.func_name.as_str(), arguments.as_slice()) {
        (op::EQUALS | op::NOT_EQUALS, [left, right]) => {
            if left.is(*right) {
                Type::Bool
            } else {
                return mismatch();
            }
        }
        (op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS, [left, right]) => {
            let is_ordered = |side: &Type| !matches!(side, Type::Null | Type::List | Type::Map);
            if left.is(*right) && is_ordered(left) && is_ordered(right) { Type::Bool } else { return mismatch() }
        }
        (op::LOGICAL_AND | op::LOGICAL_OR, sides) => {
            if sides.iter().all(|side| side.is(Type::Bool)) {
                Type::Bool
            } else {
                return mismatch();
            }
        }
        (op::LOGICAL_NOT, [operand]) => {
            if operand.is(Type::Bool) {
                Type::Bool
            } else {
                return mismatch();
            }
        }
        (op::ADD | op::SUBSTRACT | op::MULTIPLY | op::DIVIDE | op::MODULO, [left, right]) => {
            if !left.is(*right) {
                return mismatch();
            }
            if *left == Type::Dynamic { *right } else { *left }
        }
        (op::CONDITIONAL, [condition, left, right]) => {
            if !condition.is(Type::Bool) || !left.is(*right) {
                return mismatch();
            }
            if *left == Type::Dynamic { *right } else { *left }
        }
        (op::NEGATE, [operand]) => *operand,
        (op::IN, _) => Type::Bool,
        ("int", _) => {
            if arguments
                .first()
                .is_some_and(|argument| matches!(argument, Type::Bool | Type::Null | Type::List | Type::Map))
            {
                return mismatch();
            }
            Type::Int
        }
        ("size", _) => Type::Int,
        ("uint", _) => Type::UInt,
        ("double", _) => Type::Double,
        ("string", _) => Type::String,
        ("bytes", _) => Type::Bytes,
        ("bool" | "contains" | "startsWith" | "endsWith" | "matches", _) => Type::Bool,
        _ => Type::Dynamic,
    })
}

/// The field `inputs` of an `ExecutorInput`, with the names of the protobuf's fields.
fn inputs_json(inputs: &Inputs) -> Value {
    let parameters: Map<String, Value> =
        inputs.parameters.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let artifacts: Map<String, Value> = inputs
        .artifacts
        .iter()
        .map(|(name, list)| {
            let list: Vec<Value> = list.iter().map(|artifact| artifact_json(artifact, &artifact.uri)).collect();
            (name.clone(), serde_json::json!({ "artifacts": list }))
        })
        .collect();
    serde_json::json!({ "parameter_values": parameters, "parameters": {}, "artifacts": artifacts })
}

fn to_cel(value: &Value) -> cel::Value {
    match value {
        Value::Null => cel::Value::Null,
        Value::Bool(value) => cel::Value::Bool(*value),
        // All numbers of JSON and of protobuf's values are doubles.
        Value::Number(number) => cel::Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => cel::Value::from(text.as_str()),
        Value::Array(values) => cel::Value::from(values.iter().map(to_cel).collect::<Vec<_>>()),
        Value::Object(fields) => {
            cel::Value::from(fields.iter().map(|(key, value)| (key.clone(), to_cel(value))).collect::<HashMap<_, _>>())
        }
    }
}

fn from_cel(value: &cel::Value) -> Result<Value, String> {
    Ok(match value {
        cel::Value::Null => Value::Null,
        cel::Value::Bool(value) => Value::Bool(*value),
        cel::Value::Int(number) => Value::from(*number),
        cel::Value::UInt(number) => Value::from(*number),
        cel::Value::Float(number) => {
            serde_json::Number::from_f64(*number).map(Value::Number).ok_or("the result is not a finite number")?
        }
        cel::Value::String(text) => Value::String(text.to_string()),
        cel::Value::List(values) => Value::Array(values.iter().map(from_cel).collect::<Result<_, _>>()?),
        cel::Value::Map(map) => {
            let mut fields = Map::new();
            for (key, value) in map.map.iter() {
                let cel::objects::Key::String(key) = key else {
                    return Err("the result has a key that is not a string".into());
                };
                fields.insert(key.to_string(), from_cel(value)?);
            }
            Value::Object(fields)
        }
        other => return Err(format!("the result is of type {}, which has no JSON form", other.type_of())),
    })
}

#[cfg(test)]
mod tests;
