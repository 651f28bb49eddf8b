//! Parsing of requests as MLflow does it: protocol buffers in JSON, leniently typed, with MLflow's error messages.
//!
//! A request is parsed directly into its struct. Only if a type does not match is it checked again, field by field in the order of
//! MLflow's schema, to find the parameter that the error must name (`_validate_param_against_schema`).

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::{self, DeserializeOwned, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::validate::quoted;
use crate::{Error, ErrorCode};

/// The type of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Int,
    Float,
    Bool,
    List,
    Texts,
    /// Any JSON value; the handler validates it.
    Any,
}

/// A field of a request's schema.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FieldRule {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) required: bool,
}

/// A type that a field of a request can have.
pub(crate) trait Field {
    const KIND: Kind;
    /// Whether the value counts as absent: protocol buffers cannot distinguish `""` from an unset field.
    fn is_absent(&self) -> bool {
        false
    }
}

impl Field for String {
    const KIND: Kind = Kind::Text;
    fn is_absent(&self) -> bool {
        self.is_empty()
    }
}
impl Field for bool {
    const KIND: Kind = Kind::Bool;
}
impl Field for Vec<String> {
    const KIND: Kind = Kind::Texts;
}

/// An int64, as a JSON number or a string of digits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Int(pub(crate) i64);
impl Field for Int {
    const KIND: Kind = Kind::Int;
}

/// A double, as a JSON number or a string, including `NaN` and the infinities.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Float(pub(crate) f64);
impl Field for Float {
    const KIND: Kind = Kind::Float;
}

/// An enum value, as its name or its number.
#[derive(Debug, Clone)]
pub(crate) enum Enum {
    Name(String),
    Number(i64),
}
impl Field for Enum {
    const KIND: Kind = Kind::Any;
}

/// A list of ids, as strings or as numbers.
#[derive(Debug, Clone)]
pub(crate) struct Ids(pub(crate) Vec<String>);
impl Field for Ids {
    const KIND: Kind = Kind::List;
}
impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let id = |value| match value {
            Value::String(id) => Ok(id),
            Value::Number(id) if id.is_i64() => Ok(id.to_string()),
            _ => Err(de::Error::custom("not an id")),
        };
        Vec::<Value>::deserialize(d)?.into_iter().map(id).collect::<Result<_, _>>().map(Self)
    }
}

/// A repeated message.
#[derive(Debug, Clone)]
pub(crate) struct List<T>(pub(crate) Vec<T>);
impl<T> Field for List<T> {
    const KIND: Kind = Kind::List;
}
impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Vec::deserialize(d).map(Self)
    }
}

impl<'de> Deserialize<'de> for Int {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Int;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an integer")
            }
            fn visit_bool<E: de::Error>(self, v: bool) -> Result<Int, E> {
                Ok(Int(v.into()))
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Int, E> {
                Ok(Int(v))
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Int, E> {
                i64::try_from(v).map(Int).map_err(E::custom)
            }
            fn visit_f64<E: de::Error>(self, v: f64) -> Result<Int, E> {
                if v.fract() == 0.0 && v.abs() < 9.2e18 { Ok(Int(v as i64)) } else { Err(E::custom("not an integer")) }
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Int, E> {
                v.trim().parse().map(Int).map_err(E::custom)
            }
        }
        d.deserialize_any(V)
    }
}

impl<'de> Deserialize<'de> for Float {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Float;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number")
            }
            fn visit_bool<E: de::Error>(self, v: bool) -> Result<Float, E> {
                Ok(Float(v.into()))
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Float, E> {
                Ok(Float(v as f64))
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Float, E> {
                Ok(Float(v as f64))
            }
            fn visit_f64<E: de::Error>(self, v: f64) -> Result<Float, E> {
                Ok(Float(v))
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Float, E> {
                match v {
                    "NaN" => Ok(Float(f64::NAN)),
                    "Infinity" => Ok(Float(f64::INFINITY)),
                    "-Infinity" => Ok(Float(f64::NEG_INFINITY)),
                    _ if v.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'+' | b'e' | b'E')) => {
                        v.parse().map(Float).map_err(E::custom)
                    }
                    _ => Err(E::custom("not a number")),
                }
            }
        }
        d.deserialize_any(V)
    }
}

impl<'de> Deserialize<'de> for Enum {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match Value::deserialize(d)? {
            Value::String(name) => Ok(Self::Name(name)),
            Value::Number(n) => n.as_i64().map(Self::Number).ok_or_else(|| de::Error::custom("not an enumeration")),
            _ => Err(de::Error::custom("not an enumeration")),
        }
    }
}

/// A request message, declared by `messages!`.
pub(crate) trait Message: DeserializeOwned + Default + Send {
    /// The fields in the order of MLflow's schema, in which errors are reported.
    const SCHEMA: &'static [FieldRule];
    /// Fills renamed fields from their old names, then returns the name of the first required field that is absent.
    fn first_missing(&mut self) -> Option<&'static str>;
}

/// Declares request messages, such as `RunId { #[required] run_id or run_uuid: String, step: Int }`. `or` gives the old name of a field.
macro_rules! messages {
    ($($name:ident { $($(#[$req:ident])? $field:ident $(or $alt:ident)? : $ty:ty),* $(,)? })*) => { $(
        #[derive(Debug, Default, serde::Deserialize)]
        #[serde(default)]
        pub(crate) struct $name {
            $(pub(crate) $field: Option<$ty>, $(pub(crate) $alt: Option<$ty>,)?)*
        }
        impl $crate::http::wire::Message for $name {
            const SCHEMA: &'static [$crate::http::wire::FieldRule] = &[$($crate::http::wire::FieldRule {
                name: stringify!($field),
                kind: <$ty as $crate::http::wire::Field>::KIND,
                required: $crate::http::wire::messages!(@required $($req)?),
            }),*];
            fn first_missing(&mut self) -> Option<&'static str> {
                $($(if self.$field.is_none() { self.$field = self.$alt.take(); })?)*
                $(if $crate::http::wire::messages!(@required $($req)?)
                    && self.$field.as_ref().is_none_or($crate::http::wire::Field::is_absent) {
                    return Some(stringify!($field));
                })*
                None
            }
        }
    )* };
    (@required required) => { true };
    (@required) => { false };
}
pub(crate) use messages;

const SEE_DOCS: &str = " See the API docs for more information about request parameters.";

/// MLflow's error for a missing required parameter.
pub(crate) fn missing(path: &str) -> Error {
    Error::invalid(format!("Missing value for required parameter '{path}'.{SEE_DOCS}"))
}

/// MLflow's error for a parameter of an invalid type.
pub(crate) fn invalid_type(name: &str, value: &Value) -> Error {
    let kind = match value {
        Value::Null => "NoneType",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float",
        Value::Number(_) => "int",
        Value::String(_) => "str",
        Value::Array(_) => "list",
        Value::Object(_) => "dict",
    };
    let shown = match value {
        Value::String(s) => quoted(s),
        other => other.to_string(),
    };
    Error::invalid(format!(
        "Invalid value {shown} for parameter '{name}' supplied:  Hint: Value was of type '{kind}'.{SEE_DOCS}"
    ))
}

/// MLflow's error for a number out of range, in the body or in the query, where every value is a string.
pub(crate) fn out_of_range(name: &str, value: i64, in_query: bool) -> Error {
    invalid_type(name, &if in_query { Value::from(value.to_string()) } else { Value::from(value) })
}

/// Whether a JSON value has the type `kind`.
fn matches_kind(kind: Kind, value: &Value) -> bool {
    match kind {
        Kind::Text => value.is_string(),
        Kind::Bool => value.is_boolean(),
        Kind::List => value.is_array(),
        Kind::Texts => value.as_array().is_some_and(|items| items.iter().all(Value::is_string)),
        Kind::Int => Int::deserialize(value).is_ok(),
        Kind::Float => Float::deserialize(value).is_ok(),
        Kind::Any => true,
    }
}

/// Checks that all required fields are present.
fn checked<T: Message>(mut message: T) -> Result<T, Error> {
    match message.first_missing() {
        Some(name) => Err(missing(name)),
        None => Ok(message),
    }
}

/// Parses a message from a JSON value. It goes through text, so that each message has only one parser: deserializing a [`Value`] would be
/// compiled as a second one.
fn decode<T: Message>(value: &Value) -> serde_json::Result<T> {
    serde_json::from_slice(value.to_string().as_bytes())
}

/// Finds the first invalid parameter of a request that could not be parsed directly.
fn diagnose<T: Message>(mut value: Value) -> Result<T, Error> {
    // Older clients send the JSON object encoded as a JSON string.
    if let Value::String(inner) = &value {
        value = serde_json::from_str(inner).unwrap_or(Value::Null);
    }
    if !value.is_object() {
        return checked(T::default());
    }
    for rule in T::SCHEMA {
        let given = value.get(rule.name).filter(|v| !v.is_null());
        let given = given.or_else(|| value.get("run_uuid").filter(|_| rule.name == "run_id"));
        match given {
            Some(v) if !matches_kind(rule.kind, v) => return Err(invalid_type(rule.name, v)),
            None if rule.required => return Err(missing(rule.name)),
            _ => {}
        }
    }
    match decode(&value) {
        Ok(message) => checked(message),
        Err(error) => Err(Error::new(ErrorCode::BadRequest, format!("Malformed request: {error}"))),
    }
}

/// Parses a JSON request body.
pub(crate) fn from_json<T: Message>(body: &[u8]) -> Result<T, Error> {
    let error = match serde_json::from_slice(body) {
        Ok(message) => return checked(message),
        Err(error) => error,
    };
    if error.is_syntax()
        && let Some(body) = with_quoted_numbers(body)
    {
        // Recurses once: the names are in strings now, so nothing is left to quote.
        return from_json(&body);
    }
    // MLflow treats a body that is not JSON as an empty one.
    diagnose(serde_json::from_slice(body).unwrap_or(Value::Null))
}

/// Quotes `NaN`, `Infinity` and `-Infinity`, which Python writes although they are not JSON; `None` when there are none.
fn with_quoted_numbers(body: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(body.len() + 16);
    let (mut at, mut in_string, mut found) = (0, false, false);
    while at < body.len() {
        let rest = &body[at..];
        let names: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];
        let name = names.into_iter().find(|name| !in_string && rest.starts_with(name));
        let length = match (name, rest[0]) {
            (Some(name), _) => {
                found = true;
                out.push(b'"');
                out.extend_from_slice(name);
                out.push(b'"');
                at += name.len();
                continue;
            }
            (None, b'\\') if in_string => 2,
            (None, b'"') => {
                in_string = !in_string;
                1
            }
            _ => 1,
        };
        let length = length.min(rest.len());
        out.extend_from_slice(&rest[..length]);
        at += length;
    }
    found.then_some(out)
}

/// Parses a query string.
pub(crate) fn from_query<T: Message>(query: &str) -> Result<T, Error> {
    let value = query_object(query, T::SCHEMA)?;
    match decode(&value) {
        Ok(message) => checked(message),
        Err(_) => diagnose(value),
    }
}

/// The parameters of a query string as a JSON object.
fn query_object(query: &str, schema: &[FieldRule]) -> Result<Value, Error> {
    let mut object = serde_json::Map::new();
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        let kind = schema.iter().find(|r| r.name == key).map_or(Kind::Any, |r| r.kind);
        let value = value.into_owned();
        match kind {
            Kind::List | Kind::Texts => {
                let list = object.entry(key.into_owned()).or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(list) = list {
                    list.push(value.into());
                }
            }
            Kind::Bool => {
                let parsed = match value.to_ascii_lowercase().as_str() {
                    "true" => true,
                    "false" => false,
                    _ => {
                        return Err(Error::invalid(format!(
                            "Invalid boolean value: {value}, must be 'true' or 'false'."
                        )));
                    }
                };
                object.insert(key.into_owned(), parsed.into());
            }
            _ => {
                object.entry(key.into_owned()).or_insert_with(|| value.into());
            }
        }
    }
    Ok(Value::Object(object))
}

/// Where a request has its message.
enum Source {
    Query(String),
    Body(Bytes),
}

impl Source {
    /// Reads a request. Not generic over the message, so that it is compiled once.
    async fn read(request: Request) -> Result<Self, Error> {
        if request.method() == Method::GET
            && let Some(query) = request.uri().query()
        {
            return Ok(Self::Query(query.to_owned()));
        }
        if matches!(*request.method(), Method::POST | Method::PUT) {
            let kind = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
            match kind {
                None => return Err(Error::invalid("Bad Request. Content-Type header is missing.")),
                Some(kind) if kind.split(|b| *b == b';').next() != Some(b"application/json") => {
                    return Err(Error::invalid("Bad Request. Content-Type must be one of ['application/json']."));
                }
                Some(_) => {}
            }
        }
        read_body(request).await.map(Self::Body)
    }
}

/// The body of a request, up to the limit of its route.
pub(crate) async fn read_body(request: Request) -> Result<Bytes, Error> {
    Bytes::from_request(request, &()).await.map_err(|e| {
        let code =
            if e.status() == StatusCode::PAYLOAD_TOO_LARGE { ErrorCode::TooLarge } else { ErrorCode::BadRequest };
        Error::new(code, format!("The request body cannot be read: {}", e.body_text()))
    })
}

/// Extractor for a request message, from the body or, for GET, from the query.
pub(crate) struct Call<T>(pub(crate) T);

impl<T: Message, S: Send + Sync> FromRequest<S> for Call<T> {
    type Rejection = Error;

    async fn from_request(request: Request, _: &S) -> Result<Self, Error> {
        match Source::read(request).await? {
            Source::Query(query) => from_query(&query).map(Self),
            Source::Body(body) => from_json(&body).map(Self),
        }
    }
}

/// A JSON response.
pub(crate) struct Reply<T>(pub(crate) T);

impl<T: Serialize> IntoResponse for Reply<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(body) => ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response(),
            Err(e) => Error::new(ErrorCode::InternalError, e.to_string()).into_response(),
        }
    }
}

/// The empty response `{}`.
#[derive(Debug, Serialize)]
pub(crate) struct Empty {}

#[cfg(test)]
mod tests {
    use super::*;

    messages! {
        Probe { #[required] run_id or run_uuid: String, #[required] value: Float, step: Int, names: Vec<String> }
    }

    fn message(json: &str) -> String {
        from_json::<Probe>(json.as_bytes()).unwrap_err().message
    }

    #[test]
    fn lenient_types_and_renamed_fields_are_accepted() {
        let p: Probe = from_json(br#"{"run_uuid":"a","value":"NaN","step":"3","unknown":[1]}"#).unwrap();
        assert_eq!(p.run_id.as_deref(), Some("a"));
        assert!(p.value.unwrap().0.is_nan());
        assert_eq!(p.step.unwrap().0, 3);
        let q: Probe = from_query("run_id=x&value=2&names=a&names=b").unwrap();
        assert_eq!(q.names.unwrap(), ["a", "b"]);
    }

    #[test]
    fn unquoted_nan_and_infinity_are_parsed() {
        let value = |json: &str| from_json::<Probe>(json.as_bytes()).map(|p| p.value.unwrap().0);
        assert!(value(r#"{"run_id":"NaN \" NaN","value":NaN}"#).unwrap().is_nan());
        assert_eq!(value(r#"{"value":-Infinity,"run_id":"a"}"#).unwrap(), f64::NEG_INFINITY);
        assert_eq!(value(r#"{"value":Infinity,"run_id":"a"}"#).unwrap(), f64::INFINITY);
        assert!(message(r#"{"value":Infinity}"#).starts_with("Missing value for required parameter 'run_id'."));
        assert!(message(r#"{"run_id":"a","value":1,"step":NaN}"#).starts_with("Invalid value"));
        for broken in [r#"{"value":NaNcy,"run_id":"a"}"#, r#"{"run_id":"a","value":NaN"#, "NaN\\", "\"\\"] {
            assert!(value(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn error_names_the_invalid_parameter() {
        assert!(message("{}").starts_with("Missing value for required parameter 'run_id'."));
        assert!(message("{bad").starts_with("Missing value for required parameter 'run_id'."));
        assert!(message(r#"{"run_id":""}"#).starts_with("Missing value for required parameter 'run_id'."));
        assert_eq!(
            message(r#"{"run_id":5,"value":1}"#),
            "Invalid value 5 for parameter 'run_id' supplied:  Hint: Value was of type 'int'. See the API docs for \
             more information about request parameters."
        );
        assert!(message(r#"{"run_id":"a","value":"bad"}"#).starts_with("Invalid value \"bad\" for parameter 'value'"));
        assert!(message(r#"{"run_id":"a","value":1,"names":[1]}"#).contains("'names'"));
    }
}
