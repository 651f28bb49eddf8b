use super::*;

const FIELDS: Fields = Fields {
    object: "Run",
    key: "run_id",
    fields: &[text("name", "display_name"), text("state", "state"), time("created_at", "created_at")],
    has_tags: true,
};

fn listing(filter: &str, sort_by: &str) -> Result<Listing, Error> {
    Listing::new(&FIELDS, &ListRequest { filter: filter.into(), sort_by: sort_by.into(), ..ListRequest::default() })
}

fn predicate(json: &str) -> Result<Predicate, Error> {
    listing(&format!("{{\"predicates\":[{json}]}}"), "").map(|listing| listing.filter()[0].clone())
}

#[test]
fn operations_have_names_and_numbers_and_values_both_cases() {
    let equal = predicate(r#"{"operation":1,"key":"name","stringValue":"a"}"#).unwrap();
    assert_eq!(equal, predicate(r#"{"operation":"EQUALS","key":"name","string_value":"a"}"#).unwrap());
    let list = predicate(r#"{"operation":"IN","key":"state","string_values":{"values":["A","B"]}}"#).unwrap();
    assert_eq!(list.value, Operand::Texts(vec!["A".into(), "B".into()]));
    let time = predicate(r#"{"operation":5,"key":"created_at","timestamp_value":"1970-01-01T00:01:00Z"}"#).unwrap();
    assert_eq!(time.value, Operand::Integer(60));
    assert_eq!(time, predicate(r#"{"operation":5,"key":"created_at","long_value":"60"}"#).unwrap());
    // A filter may be URL-encoded once more.
    let encoded = "%7B%22predicates%22%3A%5B%7B%22operation%22%3A1%2C%22key%22%3A%22name%22%2C%22stringValue%22%3A%22a%22%7D%5D%7D";
    assert_eq!(listing(encoded, "").unwrap().filter(), [equal]);
    assert_eq!(listing("{}", "").unwrap().filter(), []);
}

#[test]
fn faulty_filters_are_refused() {
    for (json, reason) in [
        (r#"{"operation":1,"key":"x","string_value":"a"}"#, "no support for filtering on unrecognized field \"x\""),
        (r#"{"operation":8,"key":"name","string_value":"a"}"#, "cannot use IN operator with scalar type string"),
        (r#"{"operation":1,"key":"name","string_values":{"values":[]}}"#, "cannot use scalar operator EQUALS on array"),
        (r#"{"operation":9,"key":"created_at","long_value":1}"#, "cannot use non string value type int64"),
        (r#"{"operation":4,"key":"name","string_value":"a"}"#, "invalid predicate operation"),
        (r#"{"key":"name","string_value":"a"}"#, "OPERATION_UNSPECIFIED"),
        (r#"{"operation":1,"key":"name"}"#, "needs a value"),
        (r#"{"operation":1,"key":"name","string_value":"a","int_value":1}"#, "one value"),
        (r#"{"operation":1,"key":"name","text":"a"}"#, "unknown field"),
        (r#"{"operation":1,"key":"created_at","string_value":"a"}"#, "timestamp_value"),
        (r#"{"operation":2,"key":"tags.a","string_value":"b"}"#, "only EQUALS"),
        ("1", "not a predicate"),
    ] {
        let error = predicate(json).unwrap_err().to_string();
        assert!(error.contains(reason), "{json}: {error}");
    }
    for filter in ["{", "[]", "x", "{\"predicates\":{}}", "{\"other\":1}"] {
        assert!(listing(filter, "").is_err(), "{filter}");
    }
}

#[test]
fn the_order_is_checked() {
    assert_eq!(listing("", "").unwrap().sort(), "created_at");
    assert!(listing("", "NAME DESC").unwrap().is_descending());
    assert!(listing("", "x").unwrap_err().to_string().contains("Invalid sorting field: \"x\" on listable type Run"));
    assert!(listing("", "name up").unwrap_err().to_string().contains("Received invalid sort by format \"name up\""));
}

#[test]
fn tokens_carry_filter_and_order() {
    let first = listing(r#"{"predicates":[{"operation":1,"key":"state","string_value":"A"}]}"#, "name desc").unwrap();
    let position = Position { value: SortValue::Text("n".into()), key: "id".into() };
    let token = first.token(position.clone());
    let request =
        |sort_by: &str| ListRequest { page_token: token.clone(), sort_by: sort_by.into(), ..ListRequest::default() };
    let next = Listing::new(&FIELDS, &request("")).unwrap();
    assert_eq!((next.filter(), next.after(), next.is_descending()), (first.filter(), Some(&position), true));
    assert!(Listing::new(&FIELDS, &request("name asc")).unwrap_err().to_string().contains("page token does not match"));
    const TITLE: &[Field] = &[text("title", "title")];
    let foreign = Fields { object: "Other", key: "id", fields: TITLE, has_tags: false };
    for (fields, token) in [(&FIELDS, "x"), (&FIELDS, "e30="), (&foreign, token.as_str())] {
        let request = ListRequest { page_token: token.into(), ..ListRequest::default() };
        assert_eq!(Listing::new(fields, &request).unwrap_err().to_string(), "Invalid page token");
    }
}

#[test]
fn page_sizes_are_limited() {
    let size = |page_size| {
        Listing::new(&FIELDS, &ListRequest { page_size, ..ListRequest::default() }).map(|listing| listing.page_size)
    };
    assert_eq!((size(0).unwrap(), size(7).unwrap(), size(100_000).unwrap()), (20, 7, 200));
    assert!(size(-1).is_err());
}
