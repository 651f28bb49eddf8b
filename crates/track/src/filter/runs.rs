//! Filters and orders for runs, compiled to SQL.

use slipway_store::sql::Value;

use super::{Comparison, Operand, order, parse, split_identifier, sql_operator, text, texts};
use crate::Error;

/// Operators for numbers.
const NUMERIC: &[&str] = &["=", "!=", "<", "<=", ">", ">="];
/// Operators for attributes of runs and datasets.
const STRING: &[&str] = &["=", "!=", "LIKE", "ILIKE", "IN", "NOT IN"];
/// Operators for parameters and tags.
const TEXTUAL: &[&str] = &["=", "!=", "LIKE", "ILIKE", "IS NULL", "IS NOT NULL"];
const ATTRIBUTES: &[&str] = &["artifact_uri", "end_time", "run_id", "run_name", "start_time", "status", "user_id"];
const DATASET: &[&str] = &["name", "digest", "context"];

/// Parts of a query over `runs r`: joins, conditions and order. The parameters of the joins precede those of the conditions.
#[derive(Debug, Default)]
pub(crate) struct Query {
    pub(crate) joins: String,
    pub(crate) conditions: String,
    pub(crate) order: String,
    pub(crate) join_params: Vec<Value>,
    pub(crate) condition_params: Vec<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entity {
    Attribute,
    Metric,
    Param,
    Tag,
    Dataset,
}

impl Entity {
    fn name(self) -> &'static str {
        match self {
            Self::Attribute => "attribute",
            Self::Metric => "metric",
            Self::Param => "parameter",
            Self::Tag => "tag",
            Self::Dataset => "dataset",
        }
    }
}

/// Aliases of attributes, which error messages list among the valid keys.
const FILTER_ALIASES: &[&str] = &["Created", "Run Name", "Run name", "created", "run name"];
const ORDER_ALIASES: &[&str] = &["Created", "created"];

fn entity(identifier: &str, aliases: &[&'static str]) -> Result<(Entity, String), Error> {
    let (entity, key) = split_identifier(identifier);
    let entity = match entity.unwrap_or("attribute") {
        "metric" | "metrics" => Entity::Metric,
        "parameter" | "parameters" | "param" | "params" => Entity::Param,
        "tag" | "tags" => Entity::Tag,
        "attribute" | "attributes" | "attr" | "run" => Entity::Attribute,
        "dataset" | "datasets" => Entity::Dataset,
        other => {
            return Err(Error::invalid(format!(
                "Invalid entity type '{other}'. Valid values are ['metric', 'parameter', 'tag', 'attribute', 'dataset']"
            )));
        }
    };
    let key = match (entity, key.as_str()) {
        (Entity::Attribute, "created" | "Created") => "start_time".to_owned(),
        (Entity::Attribute, "run name" | "Run name" | "Run Name") => "run_name".to_owned(),
        _ => key,
    };
    if entity == Entity::Attribute && !ATTRIBUTES.contains(&key.as_str()) {
        let known = [aliases, ATTRIBUTES].concat();
        return Err(Error::invalid(format!(
            "Invalid attribute key '{key}' specified. Valid keys are '{{{}}}'",
            quoted_list(&known)
        )));
    }
    if entity == Entity::Dataset && !DATASET.contains(&key.as_str()) {
        return Err(Error::invalid(format!(
            "Invalid dataset key '{key}' specified. Valid keys are '{{{}}}'",
            quoted_list(DATASET)
        )));
    }
    Ok((entity, key))
}

/// The items as `'a', 'b'`, like the inside of a set that Python prints.
pub(super) fn quoted_list(items: &[&str]) -> String {
    items.iter().map(|i| format!("'{i}'")).collect::<Vec<_>>().join(", ")
}

fn check_operator(operator: &str, allowed: &[&str]) -> Result<(), Error> {
    if allowed.contains(&operator) {
        return Ok(());
    }
    Err(Error::invalid(format!("Invalid comparator '{operator}' not one of '{{{}}}'", quoted_list(allowed))))
}

/// Compiles a filter and the `order_by` clauses.
///
/// # Errors
/// `INVALID_PARAMETER_VALUE` with MLflow's message.
pub(crate) fn compile(filter: &str, order_by: &[String]) -> Result<Query, Error> {
    let mut query = Query::default();
    for (index, comparison) in parse(filter, true)?.iter().enumerate() {
        condition(&mut query, comparison, index)?;
    }
    let mut seen = Vec::new();
    for (index, clause) in order_by.iter().enumerate() {
        add_order(&mut query, clause, index, &mut seen, order_by)?;
    }
    if !seen.contains(&(Entity::Attribute, "start_time".to_owned())) {
        query.order.push_str("r.start_time DESC, ");
    }
    query.order.push_str("r.run_id");
    Ok(query)
}

fn condition(query: &mut Query, comparison: &Comparison, index: usize) -> Result<(), Error> {
    let (entity, key) = entity(&comparison.identifier, FILTER_ALIASES)?;
    let operator = comparison.operator.as_str();
    let Some(operand) = &comparison.operand else {
        let table = match entity {
            Entity::Param => "params",
            Entity::Tag => "tags",
            _ => {
                return Err(Error::invalid(format!(
                    "IS NULL / IS NOT NULL is only supported for tags and params, not for '{}' '{key}'",
                    entity.name()
                )));
            }
        };
        let not = if operator == "IS NULL" { "NOT " } else { "" };
        query
            .conditions
            .push_str(&format!(" AND {not}EXISTS (SELECT 1 FROM {table} x WHERE x.run = r.run AND x.key = ?)"));
        query.condition_params.push(key.into());
        return Ok(());
    };
    match entity {
        Entity::Metric => {
            let Operand::Number(number) = operand else {
                return Err(Error::invalid(format!(
                    "Expected numeric value type for metric. Found {}",
                    operand.spelling()
                )));
            };
            check_operator(operator, NUMERIC)?;
            let number: f64 = number.parse().unwrap_or(f64::NAN);
            // NaN is unequal to every number, and neither less nor greater.
            let nan = if operator == "!=" { "OR f{i}.is_nan = 1" } else { "AND f{i}.is_nan = 0" };
            let nan = nan.replace("{i}", &index.to_string());
            query.joins.push_str(&format!(
                " JOIN latest_metrics f{index} ON f{index}.run = r.run AND f{index}.key = ? \
                 AND (f{index}.value {operator} ? {nan})"
            ));
            query.join_params.extend([key.into(), number.into()]);
        }
        Entity::Param | Entity::Tag => {
            let value = text(operand).map_err(|e| match operand {
                Operand::Bare(_) => e,
                _ => Error::invalid(format!(
                    "Expected a quoted string value for {} (e.g. 'my-value'). Got value {}",
                    entity.name(),
                    e.message
                )),
            })?;
            check_operator(operator, TEXTUAL)?;
            let table = if entity == Entity::Param { "params" } else { "tags" };
            let compared = sql_operator(&format!("f{index}.value"), operator, 1);
            query.joins.push_str(&format!(
                " JOIN {table} f{index} ON f{index}.run = r.run AND f{index}.key = ? AND {compared}"
            ));
            query.join_params.extend([Value::from(key), value.into()]);
        }
        Entity::Attribute => attribute(query, &key, operator, operand)?,
        Entity::Dataset => dataset(query, &key, operator, operand)?,
    }
    Ok(())
}

fn attribute(query: &mut Query, key: &str, operator: &str, operand: &Operand) -> Result<(), Error> {
    if matches!(key, "start_time" | "end_time") {
        let Operand::Number(number) = operand else {
            return Err(Error::invalid(format!(
                "Expected numeric value type for numeric attribute: {key}. Found {}",
                operand.spelling()
            )));
        };
        check_operator(operator, NUMERIC)?;
        query.conditions.push_str(&format!(" AND r.{key} {operator} CAST(? AS DOUBLE PRECISION)"));
        query.condition_params.push(number.parse().map_or(Value::Null, Value::Real));
        return Ok(());
    }
    let values = match operand {
        Operand::List(_) if key != "run_id" => {
            return Err(Error::invalid(
                "Only ['run_id'] attributes support comparison with a list of quoted string values.",
            ));
        }
        Operand::List(_) => texts(operand)?,
        Operand::Number(n) => {
            return Err(Error::invalid(format!("Expected a quoted string value for attributes. Got value {n}")));
        }
        other => vec![text(other)?],
    };
    check_operator(operator, STRING)?;
    // MLflow compares the tag `mlflow.runName`; here the column `name` always has the same value.
    let column = if key == "run_name" { "r.name" } else { &format!("r.{key}") };
    query.conditions.push_str(&format!(" AND {}", sql_operator(column, operator, values.len())));
    query.condition_params.extend(values.into_iter().map(Value::from));
    Ok(())
}

fn dataset(query: &mut Query, key: &str, operator: &str, operand: &Operand) -> Result<(), Error> {
    let values = match operand {
        Operand::List(_) => texts(operand)?,
        Operand::Number(n) => {
            return Err(Error::invalid(format!(
                "Expected a quoted string value for dataset attributes. Got value {n}"
            )));
        }
        other => vec![text(other)?],
    };
    check_operator(operator, STRING)?;
    let column = if key == "context" { "i.context" } else { &format!("d.{key}") };
    query.conditions.push_str(&format!(
        " AND EXISTS (SELECT 1 FROM run_datasets i JOIN datasets d USING (dataset) WHERE i.run = r.run AND {})",
        sql_operator(column, operator, values.len())
    ));
    query.condition_params.extend(values.into_iter().map(Value::from));
    Ok(())
}

fn add_order(
    query: &mut Query,
    clause: &str,
    index: usize,
    seen: &mut Vec<(Entity, String)>,
    all: &[String],
) -> Result<(), Error> {
    let order = order::parse(clause)?;
    let (entity, key) = entity(&order.identifier, ORDER_ALIASES)?;
    let direction = if order.ascending { "" } else { " DESC" };
    let (rank, column) = match entity {
        Entity::Attribute => {
            let column = if key == "run_name" { "r.name".to_owned() } else { format!("r.{key}") };
            (format!("{column} IS NULL"), column)
        }
        Entity::Metric => {
            // In both directions NaN sorts after numbers, and missing values sort after NaN.
            (
                format!("CASE WHEN o{index}.is_nan = 1 THEN 1 WHEN o{index}.value IS NULL THEN 2 ELSE 0 END"),
                format!("o{index}.value"),
            )
        }
        Entity::Param | Entity::Tag => (format!("o{index}.value IS NULL"), format!("o{index}.value")),
        Entity::Dataset => return Err(Error::invalid("Invalid identifier type 'dataset'")),
    };
    let table = match entity {
        Entity::Metric => Some("latest_metrics"),
        Entity::Param => Some("params"),
        Entity::Tag => Some("tags"),
        _ => None,
    };
    if let Some(table) = table {
        query.joins.push_str(&format!(" LEFT JOIN {table} o{index} ON o{index}.run = r.run AND o{index}.key = ?"));
        query.join_params.push(key.clone().into());
    }
    if seen.contains(&(entity, key.clone())) {
        return Err(Error::new(
            crate::ErrorCode::InternalError,
            format!(
                "`order_by` contains duplicate fields: [{}]",
                quoted_list(&all.iter().map(String::as_str).collect::<Vec<_>>())
            ),
        ));
    }
    seen.push((entity, key));
    query.order.push_str(&format!("{rank}, {column}{direction}, "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(filter: &str) -> String {
        compile(filter, &[]).unwrap_err().message
    }

    #[test]
    fn error_messages_match_mlflow() {
        assert_eq!(message("metrics.a = 'x'"), "Expected numeric value type for metric. Found 'x'");
        assert_eq!(
            message("params.a = 1"),
            "Expected a quoted string value for parameter (e.g. 'my-value'). Got value 1"
        );
        assert!(message("params.a = x").starts_with("Parameter value is either not quoted"));
        assert!(message("metrics.a LIKE 1").starts_with("Invalid comparator 'LIKE' not one of"));
        assert!(message("foo.a = 'x'").starts_with("Invalid entity type 'foo'"));
        assert!(message("foo = 'x'").starts_with("Invalid attribute key 'foo'"));
        assert!(message("metrics.a IS NULL").contains("only supported for tags and params"));
    }

    #[test]
    fn parameters_are_in_the_order_of_the_query() {
        let query = compile("attributes.status = 'FINISHED' AND metrics.a > 1", &["params.p DESC".into()]).unwrap();
        assert_eq!(query.join_params, [Value::from("a".to_owned()), Value::Real(1.0), "p".to_owned().into()]);
        assert_eq!(query.condition_params, [Value::from("FINISHED".to_owned())]);
        assert!(query.order.ends_with("o0.value DESC, r.start_time DESC, r.run_id"));
    }
}
