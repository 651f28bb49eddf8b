//! The estimate compared with published measurements. Each row names its source; the tolerances say what the estimate leaves out:
//! padding of weights, libraries and fragmentation for memory, everything but the roofline for speed.

use super::*;
use crate::roofline::Roofline;
use crate::sheet;
use crate::transformer::Description;
use crate::work::Work;

/// What was measured.
enum Quantity {
    /// Weights of one GPU in GiB, with the tensor parallelism.
    Weights(&'static str, u64),
    /// Key-value cache of one sequence in GiB, with its tokens, in 16 bits.
    Cache(u64),
    /// Bytes of cache per token in 16 bits.
    CachePerToken,
    /// Tokens that the cache has capacity for on one GPU: card, share of memory used, format.
    CacheTokens(&'static str, f64, &'static str, u64),
    /// GB (10^9 bytes) of weights, gradients and optimizer per GPU with ZeRO's stage over 64 GPUs, for 7.5 x 10^9 parameters.
    Zero(u32),
    /// GiB of training with LoRA or QLoRA and full recomputation, with the tokens of one sequence.
    Adapters(Method, u64),
    /// The share of activations that are scores of attention.
    Scores,
    /// Tokens per second: the card and the workload.
    Speed(&'static str, &'static str),
}
use Quantity::*;

/// A measurement: model, quantity, value, accepted range of measured / estimated, source.
type Row = (&'static str, Quantity, f64, (f64, f64), &'static str);

const A100: &str = "A100-SXM4-80GB";
const QWEN25: &str = "QwenLM/Qwen2.5, docs/source/benchmark/speed_benchmark.rst";
const QWEN: &str = "QwenLM/Qwen, README, Profiling of Memory and Speed (rank 64 by finetune.py)";
const LLAMA31: &str = "huggingface.co/blog/llama31, KV cache size";
const ISCA: &str = "Insights into DeepSeek-V3 (Zhao et al. 2025), table 1";
const ZERO: &str = "ZeRO (Rajbhandari et al. 2020), figure 1";
const GPT_FAST: &str = "pytorch-labs/gpt-fast, README, 8 x A100-80GB limited to 330 W";
const LMDEPLOY: &str = "InternLM/lmdeploy, docs/en/benchmark/a100_fp16.md";

/// Weights: measured values include what the process has beside them, up to 6 %.
const WEIGHTS: (f64, f64) = (0.99, 1.07);
const EXACT: (f64, f64) = (0.99, 1.01);
/// Speed: the roofline is an upper bound, and good engines reach more than half of it.
const BOUND: (f64, f64) = (0.5, 1.0);
/// Speed with matrices so divided that launches and sums over GPUs take most of the time.
const DIVIDED: (f64, f64) = (0.25, 1.0);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("qwen2.5-0.5b", Weights("bf16", 1), 0.97, WEIGHTS, QWEN25),
    ("qwen2.5-1.5b", Weights("bf16", 1), 2.95, WEIGHTS, QWEN25),
    ("qwen2.5-14b", Weights("bf16", 1), 28.08, WEIGHTS, QWEN25),
    ("qwen2.5-14b", Weights("gptq-int8", 1), 16.11, WEIGHTS, QWEN25),
    ("qwen2.5-14b", Weights("gptq", 1), 9.94, WEIGHTS, QWEN25),
    ("qwen2.5-14b", Weights("awq", 1), 9.79, WEIGHTS, QWEN25),
    ("qwen2.5-72b", Weights("bf16", 1), 136.20, WEIGHTS, QWEN25),
    ("qwen2.5-72b", Weights("gptq", 1), 39.91, WEIGHTS, QWEN25),
    ("qwen2.5-72b", Weights("awq", 1), 39.44, WEIGHTS, QWEN25),
    ("qwen3-8b", Weights("bf16", 1), 15.27, EXACT, "vLLM 0.24 log of one RTX 5090 in a study of ThunderAgent (overcommit and duty)"),
    ("llama-3.1-70b", Weights("int8", 1), 67.7229, EXACT, "vllm-project/vllm pull request 12569, quantized.w8a8"),
    ("phi-4-mini", Weights("fp16", 1), 7.1694, EXACT, "vLLM 0.7.3 log in notebook gene_ter_4N_exp_eln_nl_phi4"),
    // vLLM pads the experts' width of 2,880 for its kernels.
    ("gpt-oss-120b", Weights("mxfp4", 1), 64.38, (1.0, 1.08), "vllm-project/vllm issue 33155"),
    ("gpt-oss-120b", Weights("mxfp4", 1), 65.9651, (1.0, 1.1), "vllm-project/vllm issue 23278"),
    ("llama-3.1-8b", Cache(1024), 0.125, EXACT, LLAMA31),
    ("llama-3.1-8b", Cache(16_000), 1.95, EXACT, LLAMA31),
    ("llama-3.1-8b", Cache(128_000), 15.62, EXACT, LLAMA31),
    ("llama-3.1-70b", Cache(1024), 0.313, EXACT, LLAMA31),
    ("llama-3.1-70b", Cache(16_000), 4.88, EXACT, LLAMA31),
    ("llama-3.1-70b", Cache(128_000), 39.06, EXACT, LLAMA31),
    // The 18 layers without a window hold 4,608 MiB; those with one hold 1,280 cells in llama.cpp, 128 tokens here.
    ("gpt-oss-120b", Cache(131_072), 4.5, (0.99, 1.01), "ollama issue 16480, llama_kv_cache of 131072 cells"),
    ("deepseek-v3", CachePerToken, 70_272.0, EXACT, ISCA),
    ("qwen2.5-72b", CachePerToken, 327_680.0, EXACT, ISCA),
    ("llama-3.1-405b", CachePerToken, 516_096.0, EXACT, ISCA),
    ("phi-4-mini", CacheTokens("A100-SXM4-40GB", 0.90 * 39.56 / 40.0, "fp16", 2048), 217_888.0, (0.92, 1.08), "vLLM 0.7.3 log in notebook gene_ter_4N_exp_eln_nl_phi4, 13618 blocks of 16"),
    ("qwen3-8b", CacheTokens("GeForce RTX 5090", 0.92, "bf16", 32_768), 89_040.0, (0.92, 1.08), "vLLM 0.24 log of one RTX 5090 in a study of ThunderAgent (overcommit and duty)"),
    // The weights leave 10 GiB, so that each GiB that the engine needs besides is a tenth.
    ("llama-3.1-70b", CacheTokens(H100, 0.98, "int8", 2048), 22_096.0, (0.75, 1.1), "vllm-project/vllm pull request 12569, 1381 blocks of 16"),
    ("7.5b", Zero(0), 120.0, EXACT, ZERO),
    ("7.5b", Zero(1), 31.4, EXACT, ZERO),
    ("7.5b", Zero(2), 16.6, EXACT, ZERO),
    ("7.5b", Zero(3), 1.9, (0.98, 1.02), ZERO),
    ("qwen-7b", Adapters(Method::Lora, 256), 20.1, (0.9, 1.2), QWEN),
    ("qwen-7b", Adapters(Method::Lora, 8192), 36.6, (0.9, 1.25), QWEN),
    ("qwen-14b", Adapters(Method::Lora, 256), 34.6, (0.9, 1.2), QWEN),
    ("qwen-14b", Adapters(Method::Lora, 8192), 55.2, (0.9, 1.25), QWEN),
    // GPTQ in 4 bits with DeepSpeed's flat copies of the adapters.
    ("qwen-7b", Adapters(Method::Qlora, 8192), 23.5, (0.9, 1.35), QWEN),
    ("qwen-72b", Adapters(Method::Qlora, 8192), 75.6, (0.9, 1.35), QWEN),
    ("gpt-3-175b", Scores, 0.70, (0.97, 1.03), "Korthikanti et al. 2022, section 5: selective recomputation saves 70 %"),
    ("mt-nlg-530b", Scores, 0.65, (0.97, 1.03), "Korthikanti et al. 2022, section 5: selective recomputation saves 65 %"),
    ("llama-2-7b", Speed(A100, "decode:model=llama-2-7b,context=100"), 104.9, BOUND, GPT_FAST),
    ("llama-2-7b", Speed(A100, "decode:model=llama-2-7b,context=100,dtype=int8"), 155.58, BOUND, GPT_FAST),
    ("llama-2-7b", Speed(A100, "decode:model=llama-2-7b,context=100,tp=2"), 168.84, BOUND, GPT_FAST),
    ("llama-2-7b", Speed(A100, "decode:model=llama-2-7b,context=100,tp=8"), 328.43, DIVIDED, GPT_FAST),
    ("llama-2-70b", Speed(A100, "decode:model=llama-2-70b,context=100,dtype=int8"), 19.13, BOUND, GPT_FAST),
    ("llama-2-70b", Speed(A100, "decode:model=llama-2-70b,context=100,tp=2"), 21.32, BOUND, GPT_FAST),
    ("llama-2-70b", Speed(A100, "decode:model=llama-2-70b,context=100,tp=8"), 62.50, BOUND, GPT_FAST),
    ("mixtral-8x7b", Speed(A100, "decode:model=mixtral-8x7b,context=100,dtype=int8"), 97.92, BOUND, GPT_FAST),
    ("mixtral-8x7b", Speed(A100, "decode:model=mixtral-8x7b,context=100,tp=2"), 96.67, BOUND, GPT_FAST),
    ("mixtral-8x7b", Speed(A100, "decode:model=mixtral-8x7b,context=100,tp=8"), 227.82, DIVIDED, GPT_FAST),
    ("qwen2.5-7b", Speed(A100, "decode:model=qwen2.5-7b,context=1025"), 84.28, BOUND, QWEN25),
    ("qwen2.5-14b", Speed(A100, "decode:model=qwen2.5-14b,context=1025"), 46.30, BOUND, QWEN25),
    ("qwen2.5-14b", Speed(A100, "decode:model=qwen2.5-14b,context=1025,dtype=gptq-int8"), 70.40, BOUND, QWEN25),
    ("qwen2.5-72b", Speed(A100, "decode:model=qwen2.5-72b,context=1025,tp=4"), 31.37, BOUND, QWEN25),
    ("llama-2-7b", Speed(A100, "decode:model=llama-2-7b,context=65"), 100.02, BOUND, LMDEPLOY),
    ("llama-2-7b", Speed(A100, "decode:model=llama-2-7b,context=65,batch=64"), 4154.81, (0.4, 1.0), LMDEPLOY),
    ("llama-2-70b", Speed(A100, "decode:model=llama-2-70b,context=65,tp=4"), 33.94, BOUND, LMDEPLOY),
    // 2,048 tokens of prompt in 0.139 and 0.402 seconds.
    ("llama-2-7b", Speed(A100, "prefill:model=llama-2-7b,prompt=2048"), 14_734.0, BOUND, LMDEPLOY),
    ("llama-2-70b", Speed(A100, "prefill:model=llama-2-70b,prompt=2048,tp=4"), 5095.0, BOUND, LMDEPLOY),
];

const H100: &str = "H100 80GB HBM3";

fn estimate(model: &str, quantity: &Quantity) -> f64 {
    let description =
        if matches!(quantity, Zero(_)) { Description::of_size(model) } else { Description::of_model(model) };
    let shape = description.transformer().unwrap();
    let request = Request { model: description, ..Request::default() };
    match quantity {
        Weights(format, tensor) => {
            let layout = Layout { tensor: *tensor, ..Layout::SINGLE };
            memory::weights(&shape, format.parse().unwrap(), layout).bytes / GIB
        }
        Cache(tokens) => shape.cache(*tokens, 1, 1).bytes(2.0) / GIB,
        CachePerToken => shape.cache(1, 1, 1).bytes(2.0),
        CacheTokens(card, utilization, format, seq) => {
            let request = Request {
                dtype: Some(format.parse().unwrap()),
                kv_dtype: Some(crate::sheet::Precision::Bf16),
                card: Some((*card).into()),
                gpus: Some(1),
                seq: *seq,
                utilization: *utilization,
                ..request
            };
            fit(&request).unwrap().fits[0].serving.as_ref().unwrap().cache_tokens
        }
        Zero(stage) => {
            let train = Training { zero: Some(*stage), recompute: Recompute::Full, ..Training::default() };
            let layout = Layout { data: 64, zero: *stage, ..Layout::SINGLE };
            let parts = training::training(&shape, Format::Bf16, layout, &request, &train);
            let state = parts.iter().filter(|p| matches!(p.what, "weights" | "gradients" | "optimizer"));
            state.map(|p| p.bytes).sum::<f64>() / 1e9
        }
        Adapters(method, tokens) => {
            let train = Training { method: *method, lora_rank: 64, recompute: Recompute::Full, ..Training::default() };
            let estimate = fit(&Request { seq: *tokens, train: Some(train), ..request }).unwrap();
            estimate.bytes / GIB
        }
        Scores => {
            let of = |keep_scores| {
                let train = Training { keep_scores, ..Training::default() };
                let request = Request { seq: 2048, ..request.clone() };
                let parts = training::training(&shape, Format::Bf16, Layout::SINGLE, &request, &train);
                parts.into_iter().find(|p| p.what == "activations").unwrap().bytes
            };
            1.0 - of(false) / of(true)
        }
        Speed(card, work) => {
            let roof = Roofline::from_card(&sheet::find(card).unwrap());
            roof.place(&Work::parse(work).unwrap()).unwrap().tokens_per_second.unwrap()
        }
    }
}

#[test]
fn estimates_match_published_measurements() {
    assert!(ROWS.len() >= 25);
    let mut wrong = Vec::new();
    for (model, quantity, measured, (low, high), source) in ROWS {
        let estimated = estimate(model, quantity);
        let ratio = measured / estimated;
        let what = match quantity {
            Speed(_, work) => (*work).to_owned(),
            Weights(format, _) => format!("{model} weights in {format}"),
            Adapters(method, tokens) => format!("{model} {method:?} with {tokens} tokens"),
            CacheTokens(..) => format!("{model} capacity"),
            _ => (*model).to_owned(),
        };
        if !(*low..=*high).contains(&ratio) {
            wrong.push(format!("{what}: measured {measured} / estimated {estimated:.4} = {ratio:.3} ({source})"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
