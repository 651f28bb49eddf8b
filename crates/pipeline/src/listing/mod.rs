//! How a list is filtered, ordered and cut into pages, as requests give it. [`Listing`] knows no SQL: `repo` turns it into a query with
//! the columns of the [`Fields`].
//!
//! Invariant: a listing refers only to fields that its [`Fields`] know, whether it comes from a request or from a page token.

mod filter;

use base64::Engine;
use serde::{Deserialize, Serialize};

pub use filter::{Operand, Operation, Predicate};

use crate::Error;

/// Page size of requests that give none.
const DEFAULT_PAGE_SIZE: i64 = 20;
/// Maximum page size; larger requests get this.
const MAX_PAGE_SIZE: i64 = 200;
/// Maximum bytes of a page token or filter.
const MAX_TEXT: usize = 64 << 10;

/// Type of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldKind {
    /// Text.
    Text,
    /// Milliseconds since the Unix epoch; requests compare whole seconds.
    Time,
}

/// A field that lists can be filtered and sorted by.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Name in the API.
    pub name: &'static str,
    /// Column in the database.
    pub column: &'static str,
    /// Type.
    pub kind: FieldKind,
}

/// The fields of a type of object.
#[derive(Debug)]
pub struct Fields {
    /// Name of the type in messages, such as `Run`.
    pub object: &'static str,
    /// Column of the id, which decides between equal values.
    pub key: &'static str,
    /// The fields.
    pub fields: &'static [Field],
    /// Whether the objects have tags, which are filtered by `tags.KEY`.
    pub has_tags: bool,
}

impl Fields {
    /// The field with this name.
    pub fn find(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// A text field, for tables of [`Fields`].
pub const fn text(name: &'static str, column: &'static str) -> Field {
    Field { name, column, kind: FieldKind::Text }
}

/// A time field, for tables of [`Fields`].
pub const fn time(name: &'static str, column: &'static str) -> Field {
    Field { name, column, kind: FieldKind::Time }
}

/// A value of the field that a list is sorted by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SortValue {
    /// A number.
    Integer(i64),
    /// A text.
    Text(String),
}

/// The last object of a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Its value in the field of the order.
    pub value: SortValue,
    /// Its id.
    pub key: String,
}

/// Filter, order and page of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing {
    /// Maximum number of objects.
    pub page_size: i64,
    /// What a page token repeats.
    criteria: Criteria,
    /// The last object of the page before.
    after: Option<Position>,
}

/// Filter and order of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Criteria {
    sort: String,
    descending: bool,
    filter: Vec<Predicate>,
}

#[derive(Serialize, Deserialize)]
struct Token {
    #[serde(flatten)]
    criteria: Criteria,
    after: Position,
}

/// The parameters of a list request.
#[derive(Debug, Clone, Default)]
pub struct ListRequest {
    /// Token of the page, empty for the first one.
    pub page_token: String,
    /// Maximum number of objects; 0 for the default.
    pub page_size: i64,
    /// `FIELD`, `FIELD asc` or `FIELD desc`; empty for the creation time.
    pub sort_by: String,
    /// Filter, as JSON that may be URL-encoded; may be empty.
    pub filter: String,
}

impl Listing {
    /// Reads the parameters of a request.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an unknown field, a malformed filter or token, a negative page size, or a token of another list.
    pub fn new(fields: &Fields, request: &ListRequest) -> Result<Self, Error> {
        if request.page_size < 0 {
            return Err(Error::Invalid(format!(
                "The page size should be greater than 0. Got \"{}\"",
                request.page_size
            )));
        }
        let page_size = match request.page_size {
            0 => DEFAULT_PAGE_SIZE,
            size => size.min(MAX_PAGE_SIZE),
        };
        if request.page_token.is_empty() {
            return Ok(Self { page_size, criteria: Criteria::new(fields, request)?, after: None });
        }
        let token = Token::decode(&request.page_token)?;
        let is_known = fields.find(&token.criteria.sort).is_some()
            && token.criteria.filter.iter().all(|predicate| predicate.check(fields).is_ok());
        if !is_known {
            return Err(Error::Invalid("Invalid page token".into()));
        }
        if !(request.sort_by.is_empty() && request.filter.is_empty()) {
            let requested = Criteria::new(fields, request)?;
            if requested != token.criteria {
                return Err(Error::Invalid(
                    "page token does not match the supplied sort by and/or filtering criteria. Either specify the same criteria or leave \
                     the latter empty if page token is specified"
                        .into(),
                ));
            }
        }
        Ok(Self { page_size, criteria: token.criteria, after: Some(token.after) })
    }

    /// The field of the order.
    pub fn sort(&self) -> &str {
        &self.criteria.sort
    }

    /// Whether the order is descending.
    pub fn is_descending(&self) -> bool {
        self.criteria.descending
    }

    /// The conditions, all of which must hold.
    pub fn filter(&self) -> &[Predicate] {
        &self.criteria.filter
    }

    /// The last object of the page before.
    pub fn after(&self) -> Option<&Position> {
        self.after.as_ref()
    }

    /// The token of the page after this object.
    pub fn token(&self, after: Position) -> String {
        let token = Token { criteria: self.criteria.clone(), after };
        // The token has only texts, numbers and lists of them.
        let json = serde_json::to_vec(&token).expect("a token can be written as JSON");
        base64::engine::general_purpose::STANDARD.encode(json)
    }
}

impl Token {
    fn decode(text: &str) -> Result<Self, Error> {
        let invalid = || Error::Invalid("Invalid page token".into());
        if text.len() > MAX_TEXT {
            return Err(invalid());
        }
        let json = base64::engine::general_purpose::STANDARD.decode(text).map_err(|_| invalid())?;
        serde_json::from_slice(&json).map_err(|_| invalid())
    }
}

impl Criteria {
    fn new(fields: &Fields, request: &ListRequest) -> Result<Self, Error> {
        let lower = request.sort_by.to_lowercase();
        let words: Vec<&str> = lower.split_whitespace().collect();
        let (field, descending) = match words.as_slice() {
            [] => ("created_at", false),
            [field] | [field, "asc"] => (*field, false),
            [field, "desc"] => (*field, true),
            _ => {
                return Err(Error::Invalid(format!(
                    "Received invalid sort by format {:?}. Supported format: \"field_name\", \"field_name desc\", or \"field_name asc\"",
                    request.sort_by
                )));
            }
        };
        let Some(field) = fields.find(field) else {
            return Err(Error::Invalid(format!("Invalid sorting field: {field:?} on listable type {}", fields.object)));
        };
        Ok(Self { sort: field.name.into(), descending, filter: filter::parse(fields, &request.filter)? })
    }
}

#[cfg(test)]
mod tests;
