//! Inference requests and answers as JSON, with tensors in JSON or behind it in binary.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::Error;
use crate::deployment::Answer;
use crate::tensor::{Data, DataType, Tensor, elements};

/// A request that was read.
pub(super) struct Parsed {
    pub(super) id: Option<String>,
    pub(super) inputs: Vec<Tensor>,
    pub(super) outputs: Wanted,
}

/// Which outputs are wanted and how.
pub(super) struct Wanted {
    /// Name and whether in binary; empty for all of them.
    named: Vec<(String, bool)>,
    /// Whether outputs that are not named come in binary.
    binary: bool,
}

/// A request of inference, or the JSON part of one with binary tensors.
#[derive(Deserialize, JsonSchema)]
pub struct InferenceRequest<'a> {
    /// Given back in the response; one is made up if unset.
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(default)]
    parameters: Parameters,
    /// A tensor for each input of the model.
    #[serde(borrow)]
    inputs: Vec<Input<'a>>,
    /// Which outputs are wanted; all of them if unset.
    #[serde(borrow, default)]
    outputs: Vec<Output<'a>>,
}

/// A tensor that is sent.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "InferenceRequestTensor")]
struct Input<'a> {
    /// The name of the model's input.
    #[serde(borrow)]
    name: Cow<'a, str>,
    /// Sizes of its dimensions.
    shape: Vec<i64>,
    /// `FP32`, `INT64`, `BYTES` and so on.
    #[serde(borrow)]
    datatype: Cow<'a, str>,
    #[serde(default)]
    parameters: Parameters,
    /// Its elements in row-major order, flat or nested; absent for a binary tensor.
    #[serde(borrow)]
    #[schemars(with = "Option<Vec<serde_json::Value>>")]
    data: Option<&'a RawValue>,
}

/// An output that is wanted.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "InferenceRequestOutput")]
struct Output<'a> {
    /// Its name.
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(default)]
    parameters: Parameters,
}

/// The parameters that mean something here; others are ignored.
#[derive(Deserialize, Default, JsonSchema)]
#[schemars(rename = "InferenceParameters")]
struct Parameters {
    /// Of an input: bytes of its binary data behind the JSON.
    binary_data_size: Option<usize>,
    /// Of an output: whether it is wanted as binary data.
    binary_data: Option<bool>,
    /// Of the request: whether outputs are wanted as binary data where they do not say.
    binary_data_output: Option<bool>,
    /// Not supported, and refused.
    shared_memory_region: Option<String>,
    /// Not supported, and refused.
    classification: Option<u64>,
}

// `write` writes it by hand, since going through a value would copy every tensor; this only describes it.
/// A response of inference, or the JSON part of one with binary tensors.
#[derive(JsonSchema)]
#[allow(dead_code)] // its fields are read by the macro
pub struct InferenceResponse {
    /// The deployment.
    model_name: String,
    /// The version of the model that answered; empty for a model that is not registered.
    model_version: String,
    /// The request's id.
    id: String,
    /// The model's outputs.
    outputs: Vec<ResponseTensor>,
}

/// A tensor that is answered with.
#[derive(JsonSchema)]
#[schemars(rename = "InferenceResponseTensor")]
#[allow(dead_code)] // its fields are read by the macro
struct ResponseTensor {
    /// The name of the model's output.
    name: String,
    /// `FP32`, `INT64`, `BYTES` and so on.
    datatype: String,
    /// Sizes of its dimensions.
    shape: Vec<i64>,
    /// Where a binary tensor is.
    #[schemars(skip_serializing_if = "Option::is_none")]
    parameters: Option<ResponseParameters>,
    /// Its elements in row-major order; absent for a binary tensor.
    #[schemars(skip_serializing_if = "Option::is_none")]
    data: Option<Vec<serde_json::Value>>,
}

/// Where a binary tensor is: behind the JSON, and behind the binary tensors before it.
#[derive(JsonSchema)]
#[schemars(rename = "InferenceResponseParameters")]
#[allow(dead_code)] // its fields are read by the macro
struct ResponseParameters {
    /// Its bytes.
    binary_data_size: usize,
}

/// Reads a request; `json_length` is where its JSON ends and binary data begins.
pub(super) fn parse(body: &[u8], json_length: Option<usize>) -> Result<Parsed, Error> {
    let (json, mut binary) = body.split_at(json_length.unwrap_or(body.len()));
    let request: InferenceRequest<'_> = serde_json::from_slice(json)
        .map_err(|e| Error::Invalid(format!("the request is not a V2 inference request: {e}")))?;
    let mut inputs = Vec::with_capacity(request.inputs.len());
    for input in request.inputs {
        let name = input.name.as_ref();
        let (shape, count) = elements(&input.shape, name)?;
        let datatype = DataType::parse(&input.datatype, name)?;
        if input.parameters.shared_memory_region.is_some() {
            return Err(Error::Invalid(format!("input '{name}': shared memory is not supported")));
        }
        let data = match (input.parameters.binary_data_size, input.data) {
            (Some(_), Some(_)) => {
                return Err(Error::Invalid(format!("input '{name}' has both data and binary_data_size")));
            }
            (Some(size), None) => {
                let Some((own, rest)) = binary.split_at_checked(size) else {
                    return Err(Error::Invalid(format!(
                        "input '{name}': binary_data_size is {size}, but {} bytes are left in the body",
                        binary.len()
                    )));
                };
                binary = rest;
                Data::from_binary(own, datatype, name, count)?
            }
            // The protocol has no JSON form for FP16 and BF16; numbers are accepted as the closest value.
            (None, Some(data)) => Data::from_json(data.get(), datatype, name, count)?,
            (None, None) => return Err(Error::Invalid(format!("input '{name}' has no data"))),
        };
        inputs.push(Tensor::new(input.name.into_owned(), shape, data)?);
    }
    if !binary.is_empty() {
        return Err(Error::Invalid(format!("{} bytes of binary data belong to no input", binary.len())));
    }
    let binary = request.parameters.binary_data_output.unwrap_or(false);
    let mut named = Vec::with_capacity(request.outputs.len());
    for output in request.outputs {
        if output.parameters.classification.is_some_and(|n| n > 0) || output.parameters.shared_memory_region.is_some() {
            return Err(Error::Invalid(format!(
                "output '{}': the classification and shared memory extensions are not supported",
                output.name
            )));
        }
        named.push((output.name.into_owned(), output.parameters.binary_data.unwrap_or(binary)));
    }
    Ok(Parsed { id: request.id.map(Cow::into_owned), inputs, outputs: Wanted { named, binary } })
}

/// Writes an answer; the length of its JSON if binary data follows.
pub(super) fn write(name: &str, answer: &Answer, wanted: &Wanted) -> Result<(Vec<u8>, Option<usize>), Error> {
    let mut chosen: Vec<(&Tensor, bool)> = Vec::new();
    if wanted.named.is_empty() {
        chosen.extend(answer.outputs.iter().map(|o| (o, wanted.binary)));
    }
    for (output, binary) in &wanted.named {
        chosen.push((answer.output(output)?, *binary));
    }
    let mut json = Vec::with_capacity(512);
    let mut tail = Vec::new();
    json.extend_from_slice(b"{\"model_name\":");
    text(&mut json, name);
    json.extend_from_slice(b",\"model_version\":");
    text(&mut json, &answer.model.resolved.version);
    json.extend_from_slice(b",\"id\":");
    text(&mut json, &answer.id);
    json.extend_from_slice(b",\"outputs\":[");
    for (i, (tensor, binary)) in chosen.iter().enumerate() {
        json.extend_from_slice(if i == 0 { b"{\"name\":" } else { b",{\"name\":" });
        text(&mut json, &tensor.name);
        json.extend_from_slice(b",\"datatype\":");
        text(&mut json, tensor.data.datatype().name());
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
            tensor.data.write_json(&mut json);
            json.push(b'}');
        }
    }
    json.extend_from_slice(b"]}");
    if chosen.iter().any(|(_, binary)| *binary) {
        let length = json.len();
        json.extend_from_slice(&tail);
        return Ok((json, Some(length)));
    }
    Ok((json, None))
}

fn text(out: &mut Vec<u8>, value: &str) {
    let _ = serde_json::to_writer(out, value); // writing a text into memory cannot fail
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &str, json_length: Option<usize>) -> String {
        match parse(body.as_bytes(), json_length) {
            Ok(_) => "parsed".into(),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn json_and_binary_inputs_are_read() {
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
    fn mistakes_name_the_tensor_and_what_was_expected() {
        assert!(message("{}", None).contains("missing field `inputs`"));
        assert!(message("nonsense", None).starts_with("the request is not a V2 inference request"));
        let with = |tensor: &str| message(&format!("{{\"inputs\":[{tensor}]}}"), None);
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
