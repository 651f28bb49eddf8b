//! Conditions of tasks and selectors of inputs, in the Common Expression Language.
//!
//! The evaluator is dynamically typed, while Kubeflow's checks the types of an expression first. So [`Condition::parse`] refuses what is
//! known to be a comparison of different types, such as `int(x) == 'a'`, which would otherwise be false without a word. Parameters have no
//! static type: a string parameter is simply not equal to a number.

mod cost;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators as op};
use cel::{Context, Env, ExecutionError, Program};
use parking_lot::Mutex;
use serde_json::{Map, Value};

use crate::artifact::artifact_json;
use crate::budget::Budget;
use crate::model::Inputs;
use crate::value::{self, to_text};

/// Maximum bytes of an expression.
pub const MAX_BYTES: usize = 8 << 10;
/// Maximum depth of an expression. The evaluator recurses.
const MAX_DEPTH: usize = 100;
/// Maximum number of compiled selectors that are kept.
const MAX_CACHED_SELECTORS: usize = 256;
/// Stack of the parser, which recurses for each operator of a chain such as `1 + 1 + 1`.
const PARSER_STACK_BYTES: usize = 64 << 20;
/// Maximum work of the expressions of a run: about a minute of a core. See [`cost`].
const MAX_WORK: usize = 5_000_000_000;
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
        match compile(text, &["inputs", "outputs"])? {
            (program, Type::Bool | Type::Dynamic) => Ok(Self { program }),
            (_, other) => Err(format!("the condition is of type {}; expected bool", other.name())),
        }
    }

    /// Names of the parameters that the condition refers to with a literal, as in `inputs.parameter_values['x']`.
    pub fn parameters(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        visit(self.program.expression(), &mut |expression| {
            if let Expr::Call(call) = expression
                && call.func_name == op::INDEX
                && let [map, key] = call.args.as_slice()
                && let (Expr::Select(select), Expr::Literal(LiteralValue::String(name))) = (&map.expr, &key.expr)
                && select.field == "parameter_values"
            {
                names.insert(name.inner().to_owned());
            }
        });
        names
    }

    /// Whether the task is triggered.
    ///
    /// # Errors
    /// The evaluation failed, as for a parameter without a value or an ordering of different types, or it would need more than the budget.
    /// The task fails then.
    pub fn evaluate(&self, inputs: &Inputs, budget: &Budget) -> Result<bool, String> {
        let inputs = inputs_json(inputs);
        cost::take(self.program.expression(), &[("inputs", &inputs)], budget)?;
        let mut context = context();
        context.add_variable_from_value("inputs", to_cel(&inputs));
        context.add_variable_from_value("outputs", to_cel(&Value::Object(Map::new())));
        match self.program.execute(&context) {
            Ok(cel::Value::Bool(value)) => Ok(value),
            Ok(other) => Err(format!("the condition is of type {}; expected bool", other.type_of())),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A budget for the work of the expressions of a run.
pub(crate) fn budget() -> Budget {
    Budget::work(MAX_WORK, "the expressions")
}

/// Applies a `parameterExpressionSelector`, such as `parseJson(string_value)["key"]`, to a value.
///
/// # Errors
/// The text is not an expression, its evaluation failed, or it would need more than the budget.
pub fn select(expression: &str, value: &Value, budget: &Budget) -> Result<Value, String> {
    let program = cached_selector(expression)?;
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
    let text = Value::String(to_text(value));
    cost::take(program.expression(), &[(field, value), ("string_value", &text)], budget)?;
    context.add_variable_from_value(field, to_cel(value));
    context.add_variable_from_value("string_value", to_cel(&text));
    let selected = program.execute(&context).map_err(|error| error.to_string())?;
    let selected = value::normalized(&from_cel(&selected)?);
    value::check_depth(&selected).map(|()| selected)
}

/// Checks that a selector can be compiled.
///
/// # Errors
/// The text is not an expression over the fields of a value.
pub fn check_selector(expression: &str) -> Result<(), String> {
    compile_selector(expression).map(drop)
}

/// The program of a selector. The iterations of a loop use the same few selectors again and again.
fn cached_selector(expression: &str) -> Result<Arc<Program>, String> {
    static PROGRAMS: LazyLock<Mutex<HashMap<String, Arc<Program>>>> = LazyLock::new(Mutex::default);
    if let Some(program) = PROGRAMS.lock().get(expression) {
        return Ok(Arc::clone(program));
    }
    let program = Arc::new(compile_selector(expression)?);
    let mut programs = PROGRAMS.lock();
    if programs.len() >= MAX_CACHED_SELECTORS {
        programs.clear();
    }
    programs.insert(expression.to_owned(), Arc::clone(&program));
    Ok(program)
}

fn compile_selector(expression: &str) -> Result<Program, String> {
    let fields = ["null_value", "bool_value", "number_value", "string_value", "list_value", "struct_value"];
    compile(expression, &fields).map(|(program, _)| program)
}

/// Visits an expression and those in it. The parser limits their depth.
fn visit(expression: &IdedExpr, visitor: &mut impl FnMut(&Expr)) {
    visitor(&expression.expr);
    match &expression.expr {
        Expr::Call(call) => {
            call.target.iter().map(|target| &**target).chain(&call.args).for_each(|e| visit(e, visitor))
        }
        Expr::Select(select) => visit(&select.operand, visitor),
        Expr::List(list) => list.elements.iter().for_each(|e| visit(e, visitor)),
        Expr::Comprehension(comprehension) => {
            [&comprehension.iter_range, &comprehension.loop_cond, &comprehension.loop_step, &comprehension.result]
                .into_iter()
                .for_each(|e| visit(e, visitor));
        }
        Expr::Map(map) => {
            for entry in &map.entries {
                if let EntryExpr::MapEntry(entry) = &entry.expr {
                    visit(&entry.key, visitor);
                    visit(&entry.value, visitor);
                }
            }
        }
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) | Expr::Struct(_) => {}
    }
}

fn environment() -> Arc<Env> {
    static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib().with_optional_support(false)));
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

fn compile(text: &str, variables: &[&str]) -> Result<(Program, Type), String> {
    if text.len() > MAX_BYTES {
        return Err(format!("the expression has {} bytes; the limit is {MAX_BYTES}", text.len()));
    }
    std::thread::scope(|scope| {
        let parser = std::thread::Builder::new().name("condition".into()).stack_size(PARSER_STACK_BYTES);
        let parser = parser.spawn_scoped(scope, || parse(text, variables)).map_err(|error| error.to_string())?;
        parser.join().unwrap_or_else(|_| Err("syntax error".to_owned()))
    })
}

fn parse(text: &str, variables: &[&str]) -> Result<(Program, Type), String> {
    let program = environment().compile(text).map_err(|errors| match errors.errors.first() {
        // The columns of the parser are those of the expression, not of the file.
        Some(error) => format!("syntax error at column {} of the expression: {}", error.pos.1, error.msg),
        None => "syntax error".to_owned(),
    })?;
    let mut checker = Checker { variables, bound: Vec::new(), macros: 0, depth: 0 };
    let result = checker.type_of(program.expression())?;
    Ok((program, result))
}

/// Functions of the standard library, and our own.
const FUNCTIONS: [&str; 14] = [
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
    "parseJson",
];
/// Names of types, as in `type(x) == int`.
const TYPES: [&str; 10] = ["int", "uint", "double", "bool", "string", "bytes", "list", "map", "null_type", "type"];

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

/// Finds the types of expressions.
struct Checker<'a> {
    /// The declared variables.
    variables: &'a [&'a str],
    /// Variables of the macros around the expression.
    bound: Vec<String>,
    /// Number of macros around the expression.
    macros: usize,
    /// Number of expressions around the expression.
    depth: usize,
}

impl Checker<'_> {
    /// The type of an expression, as far as it is known.
    fn type_of(&mut self, expression: &IdedExpr) -> Result<Type, String> {
        if self.depth == MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} expressions are inside each other"));
        }
        self.depth += 1;
        let result = self.type_inside(expression);
        self.depth -= 1;
        result
    }

    fn type_inside(&mut self, expression: &IdedExpr) -> Result<Type, String> {
        Ok(match &expression.expr {
            Expr::Unspecified => return Err("the expression is empty".into()),
            Expr::Ident(name) => {
                let name = name.as_str();
                if !self.variables.contains(&name)
                    && !self.bound.iter().any(|bound| bound == name)
                    && !TYPES.contains(&name)
                {
                    return Err(format!("undeclared reference to '{name}'"));
                }
                Type::Dynamic
            }
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
                self.type_of(&select.operand)?;
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
                    self.type_of(element)?;
                }
                Type::List
            }
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.type_of(&entry.key)?;
                        self.type_of(&entry.value)?;
                    }
                }
                Type::Map
            }
            Expr::Struct(message) => return Err(format!("messages such as '{}' cannot be created", message.type_name)),
            Expr::Comprehension(comprehension) => {
                if self.macros == MAX_MACRO_DEPTH {
                    return Err(format!("more than {MAX_MACRO_DEPTH} macros are inside each other"));
                }
                self.type_of(&comprehension.iter_range)?;
                self.type_of(&comprehension.accu_init)?;
                let outside = self.bound.len();
                self.bound.extend([comprehension.iter_var.clone(), comprehension.accu_var.clone()]);
                self.bound.extend(comprehension.iter_var2.clone());
                self.macros += 1;
                for part in [&comprehension.loop_cond, &comprehension.loop_step, &comprehension.result] {
                    self.type_of(part)?;
                }
                self.macros -= 1;
                self.bound.truncate(outside);
                Type::Dynamic
            }
            Expr::Call(call) => self.call_type(call)?,
        })
    }

    fn call_type(&mut self, call: &CallExpr) -> Result<Type, String> {
        let is_operator = call.func_name.contains(|c: char| !c.is_ascii_alphanumeric());
        if !is_operator && !FUNCTIONS.contains(&call.func_name.as_str()) {
            return Err(format!("undeclared reference to the function '{}'", call.func_name));
        }
        if let Some(target) = &call.target {
            self.type_of(target)?;
        }
        let arguments = call.args.iter().map(|argument| self.type_of(argument)).collect::<Result<Vec<_>, _>>()?;
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
