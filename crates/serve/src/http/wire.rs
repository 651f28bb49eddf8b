//! Parses inference requests and writes responses. Tensors are part of the JSON, or follow it in binary (the binary tensor extension).

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::Error;
use crate::deployment::InferOutput;
use crate::tensor::{Data, DataType, Tensor, parse_shape};

/// A parsed request.
pub(crate) struct Parsed {
    pub(super) id: Option<String>,
    pub(super) inputs: Vec<Tensor>,
    pub(super) outputs: RequestedOutputs,
}

/// The outputs to return, and their encoding.
pub(crate) struct RequestedOutputs {
    /// Name of each requested output, and whether it is returned in binary. Empty means all outputs.
    named: Vec<(String, bool)>,
    /// Whether outputs are returned in binary when `named` is empty.
    binary: bool,
}

/// An inference request, or the JSON part of one with binary tensors.
#[derive(Deserialize, JsonSchema)]
pub struct InferenceRequest<'a> {
    /// Returned in the response; generated if unset.
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(default)]
    parameters: Parameters,
    /// One tensor for each input of the model.
    #[serde(borrow)]
    inputs: Vec<Input<'a>>,
    /// The outputs to return; all of them if unset.
    #[serde(borrow, default)]
    outputs: Vec<Output<'a>>,
}

/// An input tensor.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "InferenceRequestTensor")]
struct Input<'a> {
    /// Name of the model's input.
    #[serde(borrow)]
    name: Cow<'a, str>,
    /// Size of each dimension.
    shape: Vec<i64>,
    /// A data type of the protocol, such as `FP32`, `INT64` or `BYTES`.
    #[serde(borrow)]
    datatype: Cow<'a, str>,
    #[serde(default)]
    parameters: Parameters,
    /// Elements in row-major order, flat or nested; absent for a binary tensor.
    #[serde(borrow)]
    #[schemars(with = "Option<Vec<serde_json::Value>>")]
    data: Option<&'a RawValue>,
}

/// A requested output.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "InferenceRequestOutput")]
struct Output<'a> {
    /// Name of the model's output.
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(default)]
    parameters: Parameters,
}

/// The supported parameters; others are ignored.
#[derive(Deserialize, Default, JsonSchema)]
#[schemars(rename = "InferenceParameters")]
struct Parameters {
    /// For an input: length in bytes of its binary data, which follows the JSON.
    binary_data_size: Option<usize>,
    /// For an output: whether to return it as binary data.
    binary_data: Option<bool>,
    /// For the request: whether to return outputs without `binary_data` as binary data.
    binary_data_output: Option<bool>,
    /// Not supported: rejected if set.
    shared_memory_region: Option<String>,
    /// Not supported: rejected if above 0.
    classification: Option<u64>,
}

// Only for the schema: `write` serializes the response by hand, because building this struct would copy every tensor.
/// An inference response, or the JSON part of one with binary tensors.
#[derive(JsonSchema)]
#[allow(dead_code)] // only the derive macro reads the fields
pub struct InferenceResponse {
    /// Name of the deployment.
    model_name: String,
    /// Version of the model that computed the outputs; empty for a model that is not registered.
    model_version: String,
    /// The request's id, or a generated one.
    id: String,
    /// slipway's own parameters.
    parameters: OwnParameters,
    /// The model's outputs.
    outputs: Vec<ResponseTensor>,
}

/// Parameters of a response.
#[derive(JsonSchema)]
#[schemars(rename = "InferenceResponseOwnParameters")]
#[allow(dead_code)] // only the derive macro reads the fields
struct OwnParameters {
    /// Name of the model within the deployment.
    slipway_variant: String,
}

/// An output tensor.
#[derive(JsonSchema)]
#[schemars(rename = "InferenceResponseTensor")]
#[allow(dead_code)] // only the derive macro reads the fields
struct ResponseTensor {
    /// Name of the model's output.
    name: String,
    /// A data type of the protocol, such as `FP32`, `INT64` or `BYTES`.
    datatype: String,
    /// Size of each dimension.
    shape: Vec<i64>,
    /// Length of the binary data; absent for a tensor in JSON.
    #[schemars(skip_serializing_if = "Option::is_none")]
    parameters: Option<ResponseParameters>,
    /// Elements in row-major order; absent for a binary tensor.
    #[schemars(skip_serializing_if = "Option::is_none")]
    data: Option<Vec<serde_json::Value>>,
}

/// Length of a binary output tensor. Binary tensors follow the JSON in the order of the outputs.
#[derive(JsonSchema)]
#[schemars(rename = "InferenceResponseParameters")]
#[allow(dead_code)] // only the derive macro reads the fields
struct ResponseParameters {
    /// Length in bytes.
    binary_data_size: usize,
}

/// Parses a request. `json_length` is the length of its JSON part; binary data follows. `None` means that all of it is JSON.
pub(crate) fn parse(body: &[u8], json_length: Option<usize>) -> Result<Parsed, Error> {
    let (json, mut binary) = body.split_at(json_length.unwrap_or(body.len()));
    let request: InferenceRequest<'_> = serde_json::from_slice(json).map_err(|e| {
        Error::Invalid(match (e.classify(), json_length) {
            (serde_json::error::Category::Data, _) => format!("the request is not a V2 inference request: {e}"),
            (_, None) => format!("the body is not JSON: {e}"),
            (_, Some(length)) => {
                format!("the body's first {length} bytes (Inference-Header-Content-Length) are not JSON: {e}")
            }
        })
    })?;
    let mut inputs = Vec::with_capacity(request.inputs.len());
    for input in request.inputs {
        let name = input.name.as_ref();
        let (shape, count) = parse_shape(&input.shape, name)?;
        let datatype = DataType::parse(&input.datatype, name)?;
        if input.parameters.shared_memory_region.is_some() {
            return Err(unsupported_input(name));
        }
        let data = match (input.parameters.binary_data_size, input.data) {
            (Some(_), Some(_)) => {
                return Err(Error::Invalid(format!("input '{name}' has both data and binary_data_size")));
            }
            (Some(size), None) => {
                let Some((data, rest)) = binary.split_at_checked(size) else {
                    return Err(Error::Invalid(format!(
                        "input '{name}': binary_data_size is {size}, but {} bytes are left in the body",
                        binary.len()
                    )));
                };
                binary = rest;
                Data::from_binary(data, datatype, name, count)?
            }
            // The protocol defines no JSON form for FP16 and BF16; numbers are accepted and rounded.
            (None, Some(data)) => Data::from_json(data.get(), datatype, name, count)?,
            (None, None) => return Err(Error::Invalid(format!("input '{name}' has no data"))),
        };
        inputs.push(Tensor::new(input.name.into_owned(), shape, data)?);
    }
    if !binary.is_empty() {
        return Err(Error::Invalid(format!("{} bytes of binary data do not belong to any input", binary.len())));
    }
    let binary = request.parameters.binary_data_output.unwrap_or(false);
    let mut named = Vec::with_capacity(request.outputs.len());
    for output in request.outputs {
        if output.parameters.classification.is_some_and(|n| n > 0) || output.parameters.shared_memory_region.is_some() {
            return Err(unsupported_output(&output.name));
        }
        named.push((output.name.into_owned(), output.parameters.binary_data.unwrap_or(binary)));
    }
    Ok(Parsed { id: request.id.map(Cow::into_owned), inputs, outputs: RequestedOutputs { named, binary } })
}

/// The error for an input in shared memory.
pub(crate) fn unsupported_input(name: &str) -> Error {
    Error::Invalid(format!("input '{name}': shared memory is not supported"))
}

/// The error for an output with parameters of extensions that are not supported.
pub(crate) fn unsupported_output(name: &str) -> Error {
    Error::Invalid(format!("output '{name}': the classification and shared memory extensions are not supported"))
}

/// Serializes a response. Also returns the length of the JSON part if binary data follows it.
pub(super) fn write(
    name: &str,
    output: &InferOutput,
    requested: &RequestedOutputs,
) -> Result<(Vec<u8>, Option<usize>), Error> {
    let mut tensors: Vec<(&Tensor, bool)> = Vec::new();
    if requested.named.is_empty() {
        tensors.extend(output.outputs.iter().map(|o| (o, requested.binary)));
    }
    for (name, binary) in &requested.named {
        tensors.push((output.output(name)?, *binary));
    }
    let mut json = Vec::with_capacity(512);
    let mut tail = Vec::new();
    json.extend_from_slice(b"{\"model_name\":");
    write_string(&mut json, name);
    json.extend_from_slice(b",\"model_version\":");
    write_string(&mut json, &output.model.resolved.version);
    json.extend_from_slice(b",\"id\":");
    write_string(&mut json, &output.id);
    json.extend_from_slice(b",\"parameters\":{\"slipway_variant\":");
    write_string(&mut json, &output.variant);
    json.extend_from_slice(b"},\"outputs\":[");
    for (i, (tensor, binary)) in tensors.iter().enumerate() {
        json.extend_from_slice(if i == 0 { b"{\"name\":" } else { b",{\"name\":" });
        write_string(&mut json, &tensor.name);
        json.extend_from_slice(b",\"datatype\":");
        write_string(&mut json, tensor.data.datatype().name());
        json.extend_from_slice(b",\"shape\":");
        let _ = serde_json::to_writer(&mut json, &tensor.shape); // writing numbers into memory cannot fail
        if *binary {
            let before = tail.len();
            tensor.data.write_binary(&mut tail);
            json.extend_from_slice(b",\"parameters\":{\"binary_data_size\":");
            json.extend_from_slice((tail.len() - before).to_string().as_bytes());
            json.extend_from_slice(b"}}");
        } else {
            json.extend_from_slice(b",\"data\":");
            tensor.data.write_json(&tensor.name, &mut json)?;
            json.push(b'}');
        }
    }
    json.extend_from_slice(b"]}");
    if tensors.iter().any(|(_, binary)| *binary) {
        let length = json.len();
        json.extend_from_slice(&tail);
        return Ok((json, Some(length)));
    }
    Ok((json, None))
}

pub(super) fn write_string(out: &mut Vec<u8>, value: &str) {
    let _ = serde_json::to_writer(out, value); // writing a string into memory cannot fail
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_message(body: &str, json_length: Option<usize>) -> String {
        match parse(body.as_bytes(), json_length) {
            Ok(_) => "parsed".into(),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn json_and_binary_inputs_are_parsed() {
        let json = r#"{"id":"7","inputs":[{"name":"a","shape":[2],"datatype":"FP32","parameters":{"binary_data_size":8}},
            {"name":"b","shape":[1,2],"datatype":"INT64","data":[[1,2]]}],"outputs":[{"name":"y","parameters":{"binary_data":true}}]}"#;
        let mut body = json.as_bytes().to_vec();
        body.extend_from_slice(&1f32.to_le_bytes());
        body.extend_from_slice(&2f32.to_le_bytes());
        let parsed = parse(&body, Some(json.len())).unwrap();
        assert_eq!(parsed.id.as_deref(), Some("7"));
        assert_eq!(parsed.inputs[0].data, Data::Fp32(vec![1.0, 2.0]));
        assert_eq!(parsed.inputs[1].data, Data::Int64(vec![1, 2]));
        assert_eq!(parsed.outputs.named, [("y".to_owned(), true)]);
    }

    #[test]
    fn errors_name_the_tensor_and_the_expected_value() {
        assert!(parse_message("{}", None).contains("missing field `inputs`"));
        assert!(parse_message("[]", None).starts_with("the request is not a V2 inference request"));
        for text in ["nonsense", "", "{\"inputs\":", "{\"inputs\":[]} x"] {
            assert!(parse_message(text, None).starts_with("the body is not JSON: "), "{text}");
        }
        assert!(parse_message("nonsense", Some(3)).starts_with("the body's first 3 bytes"));
        let with = |tensor: &str| parse_message(&format!("{{\"inputs\":[{tensor}]}}"), None);
        assert_eq!(
            with(r#"{"name":"x","shape":[3],"datatype":"FP32","data":[1,2]}"#),
            "input 'x': 2 elements, expected 3 for shape [3]"
        );
        assert!(with(r#"{"name":"x","shape":[1],"datatype":"FLOAT","data":[1]}"#).contains("unknown datatype 'FLOAT'"));
        assert_eq!(with(r#"{"name":"x","shape":[1],"datatype":"FP32"}"#), "input 'x' has no data");
        assert!(
            with(r#"{"name":"x","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}}"#)
                .contains("0 bytes are left")
        );
    }
}
