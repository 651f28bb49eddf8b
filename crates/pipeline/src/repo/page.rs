//! One page of a list, as a query.

use slipway_store::sql::{Connection, Result as Read, Row, ToSql, Value};

use crate::Error;
use crate::listing::{FieldKind, Fields, Listing, Operand, Operation, Position, Predicate, SortValue};

/// A page of a list.
#[derive(Debug)]
pub struct Page<T> {
    /// The objects.
    pub items: Vec<T>,
    /// Number of objects on all pages.
    pub total: i64,
    /// Token of the next page; empty after the last one.
    pub next_page_token: String,
}

/// Where the objects of a list come from.
pub(super) struct Source<'a> {
    /// Table.
    pub(super) table: &'a str,
    /// Columns, for `map`.
    pub(super) columns: &'a str,
    /// Number of columns.
    pub(super) width: usize,
    /// Columns and the values that they must have.
    pub(super) scope: &'a [(&'a str, &'a str)],
}

#[derive(Default)]
struct Conditions {
    sql: String,
    values: Vec<Value>,
}

impl Conditions {
    fn add(&mut self, sql: &str, values: impl IntoIterator<Item = Value>) {
        self.sql.push_str(if self.sql.is_empty() { " WHERE " } else { " AND " });
        self.sql.push_str(sql);
        self.values.extend(values);
    }

    fn add_predicate(&mut self, fields: &Fields, predicate: &Predicate) {
        if let Some(tag) = predicate.key.strip_prefix("tags.").filter(|_| fields.has_tags) {
            let Operand::Text(value) = &predicate.value else { unreachable!("`Predicate::check` requires a text") };
            let sql = format!("{} IN (SELECT owner FROM pipeline_tags WHERE key = ? AND value = ?)", fields.key);
            return self.add(&sql, [Value::from(tag.to_owned()), value.clone().into()]);
        }
        let Some(field) = fields.find(&predicate.key) else { unreachable!("`Listing` knows only fields of its type") };
        let column = match field.kind {
            FieldKind::Text => field.column.to_owned(),
            FieldKind::Time => format!("({} / 1000)", field.column),
        };
        let values: Vec<Value> = match &predicate.value {
            Operand::Text(text) => vec![text.clone().into()],
            Operand::Integer(number) => vec![(*number).into()],
            Operand::Texts(texts) => texts.iter().map(|text| text.clone().into()).collect(),
            Operand::Integers(numbers) => numbers.iter().map(|number| (*number).into()).collect(),
        };
        let operator = match predicate.operation {
            Operation::Equals => "=",
            Operation::NotEquals => "<>",
            Operation::GreaterThan => ">",
            Operation::GreaterThanEquals => ">=",
            Operation::LessThan => "<",
            Operation::LessThanEquals => "<=",
            Operation::In => {
                // `IN ()` is not valid SQL, so an empty list becomes `IN (NULL)`, which matches nothing.
                let list = if values.is_empty() { "NULL".to_owned() } else { vec!["?"; values.len()].join(",") };
                return self.add(&format!("{column} IN ({list})"), values);
            }
            Operation::IsSubstring => {
                let Operand::Text(text) = &predicate.value else { unreachable!("`Predicate::check` requires a text") };
                let escaped = text.to_lowercase().replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
                let pattern = Value::from(format!("%{escaped}%"));
                return self.add(&format!("lower({column}) LIKE ? ESCAPE '\\'"), [pattern]);
            }
        };
        self.add(&format!("{column} {operator} ?"), values);
    }

    fn params(&self) -> Vec<&dyn ToSql> {
        self.values.iter().map(|value| value as &dyn ToSql).collect()
    }
}

/// Reads a page. `map` converts a row of the source's columns.
pub(super) fn page<T>(
    c: &Connection,
    source: &Source<'_>,
    fields: &Fields,
    listing: &Listing,
    mut map: impl FnMut(&Row<'_>) -> Read<T>,
) -> Result<Page<T>, Error> {
    let mut conditions = Conditions::default();
    for (column, value) in source.scope {
        conditions.add(&format!("{column} = ?"), [Value::from((*value).to_owned())]);
    }
    for predicate in listing.filter() {
        conditions.add_predicate(fields, predicate);
    }
    let count = format!("SELECT COUNT(*) FROM {}{}", source.table, conditions.sql);
    let total = c.first(&count, conditions.params().as_slice(), |row| row.get(0))?.unwrap_or(0);

    let Some(sort) = fields.find(listing.sort()) else { unreachable!("`Listing` knows only fields of its type") };
    let (column, key) = (sort.column, fields.key);
    let (direction, beyond) = if listing.is_descending() { ("DESC", "<") } else { ("ASC", ">") };
    if let Some(Position { value, key: last }) = listing.after() {
        let value = match value {
            SortValue::Integer(number) => Value::from(*number),
            SortValue::Text(text) => text.clone().into(),
        };
        conditions.add(&format!("({column}, {key}) {beyond} (?, ?)"), [value, last.clone().into()]);
    }
    conditions.values.push((listing.page_size + 1).into());
    let sql = format!(
        "SELECT {}, {column}, {key} FROM {}{} ORDER BY {column} {direction}, {key} {direction} LIMIT ?",
        source.columns, source.table, conditions.sql
    );
    let mut rows = c.rows(&sql, conditions.params().as_slice(), |row| {
        let value = match row.get::<Value>(source.width)? {
            Value::Integer(number) => SortValue::Integer(number),
            Value::Text(text) => SortValue::Text(text),
            _ => SortValue::Text(String::new()),
        };
        Ok((map(row)?, Position { value, key: row.get(source.width + 1)? }))
    })?;
    let size = usize::try_from(listing.page_size).unwrap_or(usize::MAX);
    let has_more = rows.len() > size;
    rows.truncate(size);
    let last = rows.last().filter(|_| has_more).map(|(_, position)| position.clone());
    Ok(Page {
        items: rows.into_iter().map(|(item, _)| item).collect(),
        total,
        next_page_token: last.map(|position| listing.token(position)).unwrap_or_default(),
    })
}
