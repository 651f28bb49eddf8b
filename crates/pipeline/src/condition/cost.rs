//! What the evaluation of an expression costs at most, from the sizes of its variables. The evaluator cannot be stopped, so an expression
//! that would take too long, or too much memory, is not begun.
//!
//! Every part of the expression gets a bound of its value's size, and of the work to compute it; a macro multiplies the work of its body by
//! the length of its list. A value that is only passed on costs nothing: the evaluator shares values.

use std::collections::HashMap;

use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators as op};
use serde_json::Value;

use crate::budget::Budget;
use crate::value::weight;

/// Maximum work of one expression: about a second of a core.
const MAX_WORK: usize = 100_000_000;
/// Maximum bytes of a value that an expression makes.
const MAX_BYTES: usize = 64 << 20;
/// Work of a step of the evaluator, in bytes that could be compared or copied in the same time.
const STEP: usize = 100;
/// Work of compiling a regular expression: for each byte of one without repetitions that are counted, and of any other.
const PATTERN_BYTE: usize = 2_000;
const PATTERN: usize = 10_000_000;
/// Bytes of variables that are copied for the evaluator in the time of a unit of work.
const COPIED: usize = 8;
/// Bytes of a number and the like.
const SCALAR: usize = 32;

/// Takes the work of an expression from a budget. The variables have these values; others are small.
///
/// # Errors
/// The expression could take more than is allowed, or than there is left.
pub(super) fn take(expression: &IdedExpr, variables: &[(&str, &Value)], budget: &Budget) -> Result<(), String> {
    let mut estimate = Estimate { variables, bound: Vec::new(), sizes: HashMap::new() };
    let (_, work) = estimate.of(expression)?;
    let copied: usize = variables.iter().map(|(_, value)| weight(value) / COPIED).sum();
    let work = work.saturating_add(copied);
    if work > MAX_WORK {
        return Err("the expression would take too long with values of this size".to_owned());
    }
    budget.take(work)
}

/// A bound of the size of a value.
#[derive(Debug, Clone, Copy, Default)]
struct Size<'a> {
    /// Number of elements of a list or an object.
    length: usize,
    /// Bytes of each element.
    element: usize,
    /// Bytes.
    bytes: usize,
    /// The value itself, where it is known.
    known: Option<&'a Value>,
}

impl<'a> Size<'a> {
    const SCALAR: Self = Self { length: 0, element: 0, bytes: SCALAR, known: None };

    /// Of anything with at most this number of bytes.
    fn any(bytes: usize) -> Self {
        // Each element has at least the bytes of a scalar.
        Self { length: bytes / SCALAR + 1, element: bytes, bytes, known: None }
    }

    fn of(value: &'a Value) -> Self {
        let (length, element) = match value {
            Value::Array(values) => (values.len(), values.iter().map(weight).max()),
            // A macro over an object gets its keys, an index its values.
            Value::Object(fields) => {
                (fields.len(), fields.iter().map(|(key, value)| weight(value).max(SCALAR + key.len())).max())
            }
            _ => (0, None),
        };
        Self { length, element: element.unwrap_or(0), bytes: weight(value), known: Some(value) }
    }

    /// An element.
    fn inside(self) -> Self {
        Self::any(self.element)
    }

    /// Of a value that has one of two sizes.
    fn or(self, other: Self) -> Self {
        Self {
            length: self.length.max(other.length),
            element: self.element.max(other.element),
            bytes: self.bytes.max(other.bytes),
            known: None,
        }
    }

    /// Of two values together.
    fn and(self, other: Self) -> Self {
        Self {
            length: self.length.saturating_add(other.length),
            element: self.element.max(other.element),
            bytes: self.bytes.saturating_add(other.bytes),
            known: None,
        }
    }

    /// This size, as that of a value that the expression makes.
    fn made(self) -> Result<Self, String> {
        if self.bytes > MAX_BYTES {
            return Err(format!("the expression could make a value of more than {MAX_BYTES} bytes"));
        }
        Ok(self)
    }
}

struct Estimate<'a> {
    variables: &'a [(&'a str, &'a Value)],
    /// The variables of the macros around the expression.
    bound: Vec<(String, Size<'a>)>,
    /// Sizes of known values, by their addresses: an expression names the same ones again and again.
    sizes: HashMap<*const Value, Size<'a>>,
}

impl<'a> Estimate<'a> {
    /// Size and work of an expression.
    fn of(&mut self, expression: &IdedExpr) -> Result<(Size<'a>, usize), String> {
        let (size, work) = match &expression.expr {
            Expr::Unspecified | Expr::Struct(_) => (Size::SCALAR, 0),
            Expr::Ident(name) => (self.variable(name), 0),
            Expr::Literal(LiteralValue::String(text)) => (Size::any(SCALAR + text.inner().len()), 0),
            Expr::Literal(LiteralValue::Bytes(bytes)) => (Size::any(SCALAR + bytes.inner().len()), 0),
            Expr::Literal(_) => (Size::SCALAR, 0),
            Expr::Select(select) => {
                let (operand, work) = self.of(&select.operand)?;
                (self.field(operand, &select.field), work)
            }
            Expr::List(list) => self.collection(&mut list.elements.iter())?,
            Expr::Map(map) => self.collection(&mut map.entries.iter().flat_map(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
                EntryExpr::StructField(field) => vec![&field.value],
            }))?,
            Expr::Call(call) => self.call(call)?,
            Expr::Comprehension(comprehension) => self.comprehension(comprehension)?,
        };
        Ok((size, work.saturating_add(STEP)))
    }

    fn variable(&mut self, name: &str) -> Size<'a> {
        if let Some((_, size)) = self.bound.iter().rev().find(|(bound, _)| bound == name) {
            return *size;
        }
        let known = self.variables.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        known.map_or(Size::SCALAR, |value| self.known(value))
    }

    fn known(&mut self, value: &'a Value) -> Size<'a> {
        *self.sizes.entry(std::ptr::from_ref(value)).or_insert_with(|| Size::of(value))
    }

    /// The size of the element with this name.
    fn field(&mut self, of: Size<'a>, name: &str) -> Size<'a> {
        match of.known {
            Some(Value::Object(fields)) => fields.get(name).map_or(Size::SCALAR, |value| self.known(value)),
            _ => of.inside(),
        }
    }

    fn collection(&mut self, parts: &mut dyn Iterator<Item = &IdedExpr>) -> Result<(Size<'a>, usize), String> {
        let (mut size, mut work) = (Size::SCALAR, 0_usize);
        for part in parts {
            let (part, part_work) = self.of(part)?;
            let element = Size { length: 1, element: part.bytes, bytes: part.bytes, known: None };
            (size, work) = (size.and(element), work.saturating_add(part_work));
        }
        Ok((size.made()?, work))
    }

    fn call(&mut self, call: &CallExpr) -> Result<(Size<'a>, usize), String> {
        let mut sizes = Vec::new();
        let mut work = 0_usize;
        for part in call.target.iter().map(|target| &**target).chain(&call.args) {
            let (size, part_work) = self.of(part)?;
            sizes.push(size);
            work = work.saturating_add(part_work);
        }
        let all = sizes.iter().copied().reduce(Size::and).unwrap_or(Size::SCALAR);
        let scanned = work.saturating_add(all.bytes);
        Ok(match (call.func_name.as_str(), sizes.as_slice()) {
            (op::INDEX | op::OPT_INDEX, [operand, _]) => {
                let name = match call.args.last().map(|key| &key.expr) {
                    Some(Expr::Literal(LiteralValue::String(name))) => Some(name.inner()),
                    _ => None,
                };
                (name.map_or_else(|| operand.inside(), |name| self.field(*operand, name)), work)
            }
            (op::CONDITIONAL, [_, left, right]) => (left.or(*right), work),
            (op::LOGICAL_AND | op::LOGICAL_OR | op::LOGICAL_NOT | op::NOT_STRICTLY_FALSE | "size" | "type", _) => {
                (Size::SCALAR, work)
            }
            (
                op::EQUALS
                | op::NOT_EQUALS
                | op::LESS
                | op::LESS_EQUALS
                | op::GREATER
                | op::GREATER_EQUALS
                | op::IN
                | op::SUBSTRACT
                | op::MULTIPLY
                | op::DIVIDE
                | op::MODULO
                | op::NEGATE
                | "contains"
                | "startsWith"
                | "endsWith"
                | "int"
                | "uint"
                | "double"
                | "bool",
                _,
            ) => (Size::SCALAR, scanned),
            ("matches", _) => (Size::SCALAR, scanned.saturating_add(pattern_work(call))),
            // A text of two bytes can be an element.
            ("parseJson", _) => (Size::any(all.bytes.saturating_mul(SCALAR / 2)).made()?, scanned.saturating_mul(4)),
            (op::ADD, _) => (all.made()?, scanned),
            _ => (Size::any(all.bytes).and(all).made()?, scanned),
        })
    }

    fn comprehension(&mut self, comprehension: &ComprehensionExpr) -> Result<(Size<'a>, usize), String> {
        let (range, range_work) = self.of(&comprehension.iter_range)?;
        let (initial, initial_work) = self.of(&comprehension.accu_init)?;
        let outside = self.bound.len();
        let item = match range.known {
            // A macro over an object gets its keys.
            Some(Value::Object(fields)) => Size::any(SCALAR + fields.keys().map(String::len).max().unwrap_or(0)),
            _ => range.inside(),
        };
        self.bound.push((comprehension.iter_var.clone(), item));
        self.bound.extend(comprehension.iter_var2.clone().map(|name| (name, range.inside())));
        // What a step adds to the accumulator, which the macros name once, at most: the size without that of the accumulator.
        self.bound.push((comprehension.accu_var.clone(), Size::default()));
        let (_, condition_work) = self.of(&comprehension.loop_cond)?;
        let (step, step_work) = self.of(&comprehension.loop_step)?;
        let each = condition_work.saturating_add(step_work);
        let accumulated = Size {
            length: initial.length.saturating_add(range.length.saturating_mul(step.length)),
            element: initial.element.max(step.element),
            bytes: initial.bytes.saturating_add(range.length.saturating_mul(step.bytes)),
            known: None,
        };
        if let Some((_, accumulator)) = self.bound.last_mut() {
            *accumulator = accumulated.made()?;
        }
        let (result, result_work) = self.of(&comprehension.result)?;
        self.bound.truncate(outside);
        let work = range.length.saturating_mul(each);
        Ok((result, [range_work, initial_work, result_work].into_iter().fold(work, usize::saturating_add)))
    }
}

/// Work of compiling the pattern of `matches`.
fn pattern_work(call: &CallExpr) -> usize {
    match call.args.last().map(|pattern| &pattern.expr) {
        Some(Expr::Literal(LiteralValue::String(text))) if !text.inner().contains(['{', '\\']) => {
            text.inner().len().saturating_mul(PATTERN_BYTE)
        }
        _ => PATTERN,
    }
}
