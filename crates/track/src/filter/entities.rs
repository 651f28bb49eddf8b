//! Filters and orders for experiments, registered models and model versions, compiled to SQL.

use slipway_store::sql::Value;

use super::runs::quoted_list;
use super::{Operand, order, parse, split_identifier, sql_operator, text, texts};
use crate::{Error, ErrorCode};

/// The searchable attributes of one kind of entity.
pub(crate) struct Searchable {
    /// The alias of the entity's table in the query.
    pub(crate) alias: &'static str,
    /// Attributes for filters: name, column, and whether it is numeric.
    pub(crate) filters: &'static [(&'static str, &'static str, bool)],
    /// Attributes that can be compared with a list.
    pub(crate) lists: &'static [&'static str],
    /// Attributes for `order_by`: name and column.
    pub(crate) orders: &'static [(&'static str, &'static str)],
    /// The tag table, and the condition that joins its row `x` to the entity.
    pub(crate) tags: (&'static str, &'static str),
    /// Whether `IS NULL` is supported, which is so only for experiments.
    pub(crate) supports_null: bool,
}

/// Experiments (`SearchExperimentsUtils`).
pub(crate) const EXPERIMENTS: Searchable = Searchable {
    alias: "e",
    filters: &[
        ("name", "e.name", false),
        ("experiment_id", "e.experiment_id", false),
        ("creation_time", "e.creation_time", true),
        ("last_update_time", "e.last_update_time", true),
    ],
    lists: &["experiment_id"],
    orders: &[
        ("name", "e.name"),
        ("experiment_id", "e.experiment_id"),
        ("creation_time", "e.creation_time"),
        ("last_update_time", "e.last_update_time"),
    ],
    tags: ("experiment_tags", "x.experiment_id = e.experiment_id"),
    supports_null: true,
};

/// Registered models (`SearchModelUtils`).
pub(crate) const MODELS: Searchable = Searchable {
    alias: "m",
    filters: &[("name", "m.name", false)],
    lists: &["name"],
    orders: &[
        ("name", "m.name"),
        ("timestamp", "m.last_updated_time"),
        ("last_updated_timestamp", "m.last_updated_time"),
    ],
    tags: ("registered_model_tags", "x.name = m.name"),
    supports_null: false,
};

/// Model versions (`SearchModelVersionUtils`).
pub(crate) const VERSIONS: Searchable = Searchable {
    alias: "v",
    filters: &[
        ("name", "v.name", false),
        ("version_number", "v.version", true),
        ("run_id", "v.run_id", false),
        ("source_path", "v.source", false),
    ],
    lists: &["name", "run_id"],
    orders: &[
        ("name", "v.name"),
        ("version_number", "v.version"),
        ("creation_timestamp", "v.creation_time"),
        ("last_updated_timestamp", "v.last_updated_time"),
    ],
    tags: ("model_version_tags", "x.name = v.name AND x.version = v.version"),
    supports_null: false,
};

/// SQL conditions (each starts with ` AND `) and their parameters.
#[derive(Debug, Default)]
pub(crate) struct Conditions {
    pub(crate) sql: String,
    pub(crate) params: Vec<Value>,
    /// Whether the filter selects prompts, which are otherwise excluded.
    pub(crate) prompts: bool,
}

/// Compiles a filter to SQL conditions.
///
/// # Errors
/// `INVALID_PARAMETER_VALUE` with MLflow's message.
pub(crate) fn compile(searchable: &Searchable, filter: &str) -> Result<Conditions, Error> {
    let mut out = Conditions::default();
    for comparison in parse(filter, false)? {
        let (entity, key) = comparison.split();
        let is_tag = match entity {
            None | Some("attribute") => false,
            Some("tag" | "tags") => true,
            Some(other) => {
                return Err(Error::invalid(format!(
                    "Invalid entity type '{other}'. Valid entity types are ('attribute', 'tag', 'tags')"
                )));
            }
        };
        let operator = comparison.operator.as_str();
        let (table, join) = searchable.tags;
        let Some(operand) = &comparison.operand else {
            if !searchable.supports_null {
                return Err(Error::invalid("Invalid comparison clause. Expected 3 tokens found 2"));
            }
            if !is_tag {
                return Err(Error::invalid(format!(
                    "IS NULL / IS NOT NULL is only supported for tags, not for attribute '{key}'"
                )));
            }
            let not = if operator == "IS NULL" { "NOT " } else { "" };
            out.sql.push_str(&format!(" AND {not}EXISTS (SELECT 1 FROM {table} x WHERE {join} AND x.key = ?)"));
            out.params.push(key.into());
            continue;
        };
        if is_tag {
            let value = tag_text(operand)?;
            if !["=", "!=", "LIKE", "ILIKE"].contains(&operator) {
                return Err(Error::invalid(format!("Invalid comparator for tag: {operator}")));
            }
            if key == "mlflow.prompt.is_prompt" && !searchable.supports_null {
                // Models do not have the tag, so the filter only selects either prompts or models.
                out.prompts = (operator == "=") == value.eq_ignore_ascii_case("true");
                continue;
            }
            let compared = sql_operator("x.value", operator, 1);
            out.sql
                .push_str(&format!(" AND EXISTS (SELECT 1 FROM {table} x WHERE {join} AND x.key = ? AND {compared})"));
            out.params.extend([Value::from(key), value.into()]);
            continue;
        }
        let Some((_, column, numeric)) = searchable.filters.iter().find(|(name, ..)| *name == key) else {
            let names: Vec<_> = searchable.filters.iter().map(|(name, ..)| *name).collect();
            return Err(Error::invalid(format!(
                "Invalid attribute key '{key}' specified. Valid keys are '{{{}}}'",
                quoted_list(&names)
            )));
        };
        let values = attribute_values(searchable, &key, operator, operand, *numeric)?;
        out.sql.push_str(&format!(" AND {}", sql_operator(column, operator, values.len())));
        out.params.extend(values);
    }
    Ok(out)
}

fn tag_text(operand: &Operand) -> Result<String, Error> {
    text(operand).map_err(|e| match operand {
        Operand::Bare(_) => e,
        _ => {
            Error::invalid(format!("Expected a quoted string value for tag (e.g. 'my-value'). Got value {}", e.message))
        }
    })
}

fn attribute_values(
    searchable: &Searchable,
    key: &str,
    operator: &str,
    operand: &Operand,
    numeric: bool,
) -> Result<Vec<Value>, Error> {
    if numeric {
        if !["=", "!=", "<", "<=", ">", ">="].contains(&operator) {
            return Err(Error::invalid(format!("Invalid comparator for attribute {key}: {operator}")));
        }
        let integer = |n: &str, shown: String| match n.parse::<i64>() {
            Ok(n) => Ok(vec![n.into()]),
            Err(_) => Err(Error::invalid(format!("Invalid value for numeric attribute '{key}': {shown}"))),
        };
        return match operand {
            Operand::Number(n) => integer(n, n.clone()),
            // Only experiments require numbers without quotes.
            Operand::Text(n) if !searchable.supports_null => integer(n, format!("'{n}'")),
            other => Err(Error::invalid(format!(
                "Expected numeric value type for numeric attribute: {key}. Found {}",
                other.spelling()
            ))),
        };
    }
    let values = match operand {
        Operand::List(_) if !searchable.lists.contains(&key) => {
            let mut names = searchable.lists.to_vec();
            names.sort_unstable();
            return Err(Error::invalid(format!(
                "Only [{}] attributes support comparison with a list of quoted string values.",
                quoted_list(&names)
            )));
        }
        Operand::List(_) => texts(operand)?,
        Operand::Number(n) if searchable.supports_null => {
            return Err(Error::invalid(format!("Expected a quoted string value for attributes. Got value {n}")));
        }
        Operand::Number(n) => {
            return Err(Error::invalid(format!(
                "Expected a quoted string value or a list of quoted string values for attributes. Got value {n}"
            )));
        }
        other => vec![text(other)?],
    };
    if searchable.supports_null && !["=", "!=", "LIKE", "ILIKE", "IN", "NOT IN"].contains(&operator) {
        return Err(Error::invalid(format!(
            "Invalid comparator '{operator}' not one of '{{{}}}'",
            quoted_list(&["!=", "=", "ILIKE", "IN", "LIKE", "NOT IN"])
        )));
    }
    let list = matches!(operand, Operand::List(_));
    let allowed: &[&str] = if list { &["IN", "NOT IN"] } else { &["=", "!=", "LIKE", "ILIKE"] };
    if !allowed.contains(&operator) {
        return Err(Error::invalid(format!("Invalid comparator for attribute: {operator}")));
    }
    if key == "experiment_id" {
        return values.iter().map(|v| crate::validate::experiment_id(v).map(Value::from)).collect();
    }
    Ok(values.into_iter().map(Value::from).collect())
}

/// Compiles `order_by` to SQL. `fallback` is used if it is empty; `tie_breakers` are always appended.
///
/// # Errors
/// `INVALID_PARAMETER_VALUE` with MLflow's message.
pub(crate) fn compile_order(
    searchable: &Searchable,
    order_by: &[String],
    fallback: &[&str],
    tie_breakers: &[(&str, &str)],
) -> Result<String, Error> {
    let fallback: Vec<String> = fallback.iter().map(|s| (*s).to_owned()).collect();
    let clauses = if order_by.is_empty() { &fallback } else { order_by };
    let mut columns: Vec<&str> = Vec::new();
    let mut sql = String::new();
    for clause in clauses {
        let order = order::parse(clause)?;
        let (entity, key) = split_identifier(&order.identifier);
        if let Some(other) = entity.filter(|e| *e != "attribute") {
            return Err(Error::invalid(if matches!(other, "tag" | "tags") {
                "Invalid order_by entity: tag".to_owned()
            } else {
                format!("Invalid entity type '{other}'. Valid entity types are ('attribute', 'tag', 'tags')")
            }));
        }
        let Some((_, column)) = searchable.orders.iter().find(|(name, _)| *name == key) else {
            let names: Vec<_> = searchable.orders.iter().map(|(name, _)| *name).collect();
            return Err(Error::invalid(if searchable.alias == "m" {
                format!(
                    "Invalid order by key '{key}' specified. Valid keys are '{{{}}}'",
                    quoted_list(&["name", "timestamp"])
                )
            } else {
                format!("Invalid attribute key '{key}' specified. Valid keys are '{{{}}}'", quoted_list(&names))
            }));
        };
        if columns.contains(column) && !searchable.supports_null {
            let given: Vec<_> = order_by.iter().map(String::as_str).collect();
            return Err(Error::new(
                ErrorCode::InternalError,
                format!("`order_by` contains duplicate fields: [{}]", quoted_list(&given)),
            ));
        }
        columns.push(column);
        sql.push_str(&format!("{column}{}, ", if order.ascending { "" } else { " DESC" }));
    }
    for (column, direction) in tie_breakers {
        if !columns.contains(column) {
            sql.push_str(&format!("{column}{direction}, "));
        }
    }
    sql.truncate(sql.trim_end_matches(", ").len());
    Ok(sql)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_and_orders_compile() {
        let c = compile(&VERSIONS, "name = 'm' AND version_number > 3 AND tags.a ILIKE 'x%'").unwrap();
        assert_eq!(c.params.len(), 4);
        assert!(c.sql.contains("v.version > ?"));
        assert_eq!(
            compile_order(&EXPERIMENTS, &["name ASC".into()], &[], &[("e.experiment_id", " DESC")]).unwrap(),
            "e.name, e.experiment_id DESC"
        );
        assert!(compile(&MODELS, "tags.`mlflow.prompt.is_prompt` = 'true'").unwrap().prompts);
        assert!(compile(&MODELS, "metrics.a = 'x'").is_err());
        assert!(compile(&MODELS, "name IS NULL").is_err());
    }
}
