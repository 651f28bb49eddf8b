//! Triton's extensions that describe models: configuration and statistics. Used by both protocols; REST serves the same messages in JSON
//! (Triton's `docs/protocol/extension_model_configuration.md` and `extension_statistics.md`).

use serde_json::{Value, json};

use crate::Error;
use crate::deployment::{Deployment, Loaded};
use crate::generated::inference::{
    DataType as TritonType, InferStatistics, ModelConfig, ModelDynamicBatching, ModelInput, ModelOutput,
    ModelStatistics, StatisticDuration,
};
use crate::tensor::{DataType, TensorSpec};

fn triton_type(datatype: DataType) -> TritonType {
    match datatype {
        DataType::Bool => TritonType::TypeBool,
        DataType::Uint8 => TritonType::TypeUint8,
        DataType::Uint16 => TritonType::TypeUint16,
        DataType::Uint32 => TritonType::TypeUint32,
        DataType::Uint64 => TritonType::TypeUint64,
        DataType::Int8 => TritonType::TypeInt8,
        DataType::Int16 => TritonType::TypeInt16,
        DataType::Int32 => TritonType::TypeInt32,
        DataType::Int64 => TritonType::TypeInt64,
        DataType::Fp16 => TritonType::TypeFp16,
        DataType::Bf16 => TritonType::TypeBf16,
        DataType::Fp32 => TritonType::TypeFp32,
        DataType::Fp64 => TritonType::TypeFp64,
        DataType::Bytes => TritonType::TypeString,
    }
}

/// A model's configuration. If its requests are batched, the first dimension is left out of the shapes, as in Triton's own configurations.
///
/// # Errors
/// [`Error::NotFound`] and [`Error::NotReady`].
pub(crate) fn config(deployment: &Deployment, version: Option<&str>, platform: &str) -> Result<ModelConfig, Error> {
    let loaded = deployment.representative(version)?;
    let batching = deployment.manifest.spec.batching.as_ref().filter(|_| loaded.is_batched());
    let dims = |spec: &TensorSpec| spec.declared_shape().into_iter().skip(batching.iter().len()).collect();
    let input = |spec: &TensorSpec| ModelInput {
        name: spec.name.clone(),
        data_type: triton_type(spec.datatype).into(),
        dims: dims(spec),
    };
    let output = |spec: &TensorSpec| ModelOutput {
        name: spec.name.clone(),
        data_type: triton_type(spec.datatype).into(),
        dims: dims(spec),
    };
    Ok(ModelConfig {
        name: deployment.name().to_owned(),
        platform: platform.to_owned(),
        backend: platform.trim_start_matches("onnx_").to_owned(),
        max_batch_size: batching.map_or(0, |b| i32::try_from(b.max_size).unwrap_or(i32::MAX)),
        input: loaded.model.inputs().iter().map(input).collect(),
        output: loaded.model.outputs().iter().map(output).collect(),
        dynamic_batching: batching
            .map(|b| ModelDynamicBatching { max_queue_delay_microseconds: b.max_delay_ms.saturating_mul(1000) }),
    })
}

/// Statistics of the loaded models of a deployment, or only of one version.
///
/// # Errors
/// [`Error::NotFound`] when the version is not loaded.
pub(crate) fn statistics(deployment: &Deployment, version: Option<&str>) -> Result<Vec<ModelStatistics>, Error> {
    let of_model = |loaded: &Loaded| {
        let stats = loaded.stats.snapshot();
        let duration = |count: u64, us: u64| Some(StatisticDuration { count, ns: us.saturating_mul(1000) });
        let succeeded = stats.requests.saturating_sub(stats.errors);
        ModelStatistics {
            name: deployment.name().to_owned(),
            version: loaded.resolved.version.clone(),
            last_inference: stats.last_ms,
            inference_count: stats.rows,
            execution_count: succeeded,
            inference_stats: Some(InferStatistics {
                success: duration(succeeded, stats.total_us.saturating_sub(stats.errors_us)),
                fail: duration(stats.errors, stats.errors_us),
            }),
        }
    };
    match version.filter(|version| !version.is_empty()) {
        Some(version) => Ok(vec![of_model(&*deployment.representative(Some(version))?)]),
        None => Ok(deployment.variants.iter().filter_map(|v| v.loaded()).map(|loaded| of_model(&loaded)).collect()),
    }
}

/// A configuration in JSON.
pub(crate) fn config_json(config: &ModelConfig) -> Value {
    let tensor = |name: &str, data_type: i32, dims: &[i64]| {
        let data_type = TritonType::try_from(data_type).unwrap_or_default().as_str_name();
        json!({ "name": name, "data_type": data_type, "dims": dims })
    };
    let mut json = json!({
        "name": config.name,
        "platform": config.platform,
        "backend": config.backend,
        "max_batch_size": config.max_batch_size,
        "input": config.input.iter().map(|i| tensor(&i.name, i.data_type, &i.dims)).collect::<Vec<_>>(),
        "output": config.output.iter().map(|o| tensor(&o.name, o.data_type, &o.dims)).collect::<Vec<_>>(),
    });
    if let Some(batching) = &config.dynamic_batching {
        json["dynamic_batching"] = json!({ "max_queue_delay_microseconds": batching.max_queue_delay_microseconds });
    }
    json
}

/// Statistics in JSON.
pub(crate) fn statistics_json(statistics: &[ModelStatistics]) -> Value {
    let duration = |d: &Option<StatisticDuration>| {
        let d = d.unwrap_or_default();
        json!({ "count": d.count, "ns": d.ns })
    };
    let model = |s: &ModelStatistics| {
        let stats = s.inference_stats.unwrap_or_default();
        json!({
            "name": s.name,
            "version": s.version,
            "last_inference": s.last_inference,
            "inference_count": s.inference_count,
            "execution_count": s.execution_count,
            "inference_stats": { "success": duration(&stats.success), "fail": duration(&stats.fail) },
        })
    };
    json!({ "model_stats": statistics.iter().map(model).collect::<Vec<_>>() })
}

/// The settings of Triton's logging extension, which are fixed: slipway is configured with the environment variable `RUST_LOG` instead.
pub(crate) const LOG_LEVELS: [(&str, bool); 3] = [("log_error", true), ("log_info", true), ("log_warning", true)];

/// The error for a request that changes settings of Triton's trace or logging extension.
pub(crate) fn fixed_settings(extension: &str) -> Error {
    Error::Invalid(format!("the {extension} settings of this server cannot be changed"))
}
