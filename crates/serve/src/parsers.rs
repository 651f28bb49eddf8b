//! Property tests of this crate's parsers; see `slipway_mutations`.

use slipway_mutations::{feed, feed_bytes};

use crate::http::wire;
use crate::manifest::Manifest;
use crate::tensor::{Data, DataType};

#[test]
fn inference_requests_never_panic() {
    let json = r#"{"id":"7","inputs":[{"name":"a","shape":[2],"datatype":"FP32","parameters":{"binary_data_size":8}},{"name":"b","shape":[1,2],"datatype":"INT64","data":[[1,2]]},{"name":"c","shape":[1],"datatype":"BYTES","data":["é"]}],"outputs":[{"name":"y","parameters":{"binary_data":true}}]}"#;
    let with_tail = [json.as_bytes(), &[0; 8]].concat();
    feed_bytes(&[with_tail], |body| {
        let _ = wire::parse(body, None);
        let _ = wire::parse(body, Some(json.len().min(body.len())));
    });
}

#[test]
fn tensors_never_panic() {
    let types = [DataType::Bool, DataType::Uint8, DataType::Int64, DataType::Fp16, DataType::Fp64, DataType::Bytes];
    feed(&["[1,2.5,-3]", "[[true],[false]]", "[\"a\",\"\\u00e9\"]"], |text| {
        for datatype in types {
            let _ = Data::from_json(text, datatype, "x", 3);
            let _ = Data::from_json(text, datatype, "x", usize::MAX);
        }
    });
    feed_bytes(&[&b"\x01\0\0\0a\0\0\0\0"[..], &[0; 24]], |bytes| {
        for datatype in types {
            for count in [0, 3, usize::MAX] {
                let _ = Data::from_binary(bytes, datatype, "x", count);
            }
        }
    });
}

#[test]
fn manifests_never_panic() {
    let valid = "apiVersion: slipway.dev/v1\nkind: Deployment\nmetadata: {name: digits}\nspec:\n  models:\n    - {name: a, uri: 'models:/digits@champion', weight: 90}\n    - {name: b, uri: 'runs:/abc/m', weight: 10}\n  split: {by: header, header: X-User}\n  batching: {max_size: 32, max_delay_ms: 2}\n  limits: {timeout_ms: 5000, queue: 256}\n";
    feed(&[valid], |text| drop(Manifest::parse(text)));
}
