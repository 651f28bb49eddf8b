//! `gpu bench`, `gpu roofline`, `gpu fit`.

use slipway_core::clock::now_ms;
use slipway_core::units;
use slipway_gpu::bench::{self, Effort, Figure, Report, compare};
use slipway_gpu::fit::{self, Question};
use slipway_gpu::nvml::Nvml;
use slipway_gpu::roofline::{Place, Roofline};
use slipway_gpu::sheet::{self, Precision};
use slipway_gpu::work::{self, Work};
use slipway_gpu::{GpuError, draw};

use super::Context;
use crate::Failure;
use crate::cli::Format;
use crate::cli::gpu as cli;
use crate::output::{Table, print, print_text, say};

/// GPUs slower than the fastest of their kind by this share are named.
const OUTLIER: f64 = 0.05;

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A report that is kept, with its number.
#[derive(Debug, serde::Deserialize, serde::Serialize)]
struct Kept {
    number: i64,
    #[serde(flatten)]
    report: Report,
}

pub(super) async fn bench(context: &Context, fixture: Option<&str>, options: cli::Bench) -> Result<(), Failure> {
    if options.history {
        return history(context).await;
    }
    if fixture.is_some() && !options.cpu {
        return Err(GpuError::Invalid("a simulated GPU has no speed; measure the processor with --cpu".into()).into());
    }
    let effort = if options.quick { Effort::QUICK } else { Effort::FULL };
    let note = |text: &str| {
        if !context.global.quiet {
            say(format_args!("measuring {text}"));
        }
    };
    let nvml = if options.cpu { None } else { Nvml::find(None).ok() };
    let (devices, figures) = if options.cpu {
        (vec![bench::cpu::model()], bench::cpu::run(effort, note))
    } else {
        bench::cuda::run(nvml.as_ref(), effort, note)?
    };
    let driver = nvml.as_ref().and_then(|n| n.driver_version().ok()).unwrap_or_default();
    let report = Report { time: now_ms(), host: host(), devices, driver, figures };

    let stored = !options.no_store || options.compare.is_some();
    let client = if stored { Some(context.client().await?) } else { None };
    let mut before = None;
    if let (Some(number), Some(client)) = (options.compare, &client) {
        let kept: Vec<Kept> = client.get("/api/v1/gpu/benchmarks?limit=1000").await?;
        let same = |k: &&Kept| {
            if number == 0 {
                k.report.host == report.host && k.report.devices == report.devices
            } else {
                k.number == number
            }
        };
        before = kept.into_iter().find(|k| same(&k));
        if before.is_none() {
            say("there is no earlier report to compare with");
        }
    }
    if let (Some(client), false) = (&client, options.no_store) {
        let body = serde_json::to_value(&report).unwrap_or_default();
        let answer: serde_json::Value = client.post("/api/v1/gpu/benchmarks", &body).await?;
        say(format_args!("kept as report {}", answer["number"]));
    }
    if let Some(file) = &options.report {
        let text = match file.extension().and_then(|e| e.to_str()) {
            Some("md") => report.markdown(),
            Some("html") => html(&report),
            _ => serde_json::to_string_pretty(&report).unwrap_or_default() + "\n",
        };
        std::fs::write(file, text).map_err(|source| GpuError::Io { what: file.display().to_string(), source })?;
    }
    let differences = before.map(|b| compare(&b.report, &report)).unwrap_or_default();
    print(context.global.output.format, &report, |report| {
        let mut table =
            Table::new(&["WHAT", "DEVICE", "FORMAT", "SIZE", "MEDIAN", "RANGE", "OF PEAK", "GRADE", "BEFORE"]);
        for f in &report.figures {
            let difference = differences.iter().find(|d| d.now == *f);
            table.row(row(f, difference));
        }
        table
    });
    for line in report.outliers(OUTLIER).into_iter().chain(
        report.figures.iter().filter_map(|f| f.cause.clone().map(|c| format!("{} on {}: {c}", f.what, f.device))),
    ) {
        say(line);
    }
    if differences.iter().any(|d| d.regression) { Err(Failure::Findings) } else { Ok(()) }
}

fn row(f: &Figure, difference: Option<&bench::Difference>) -> Vec<String> {
    let size = |s: u64| if f.what == "gemm" { s.to_string() } else { units::bytes(s) };
    let digits = if f.median < 10.0 { 3 } else { 1 };
    vec![
        f.what.clone(),
        f.device.clone(),
        f.precision.map_or(String::new(), |p| p.to_string()),
        f.size.map_or(String::new(), size),
        format!("{:.digits$} {}", f.median, f.unit),
        format!("{:.digits$} to {:.digits$}", f.range.0, f.range.1),
        f.peak.map_or(String::new(), |p| format!("{:.0} %", f.median / p * 100.0)),
        f.grade.map_or(String::new(), |g| format!("{g:?}").to_lowercase()),
        difference.map_or(String::new(), |d| {
            format!("{:+.1} %{}", d.change * 100.0, if d.regression { " SLOWER" } else { "" })
        }),
    ]
}

/// The report as a page of its own, with the roofline.
fn html(report: &Report) -> String {
    let devices = report.figures.iter().map(|f| f.device.as_str()).find(|d| !d.contains("->")).unwrap_or("cpu");
    let picture = report.roofline(devices).map(|r| draw::roofline(&r, &[])).unwrap_or_default();
    let cell = |t: &str| format!("<td>{}</td>", t.replace('&', "&amp;").replace('<', "&lt;"));
    let rows: String = report
        .figures
        .iter()
        .map(|f| format!("<tr>{}</tr>\n", row(f, None).iter().map(|c| cell(c)).collect::<String>()))
        .collect();
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Benchmark of {0}</title><style>:root{{color-scheme:light dark}}body{{font:15px system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}}td{{padding:.2rem .6rem;border-top:1px solid #8884}}table{{border-collapse:collapse}}</style><h1>Benchmark of {0}</h1><p>Host {1}. Driver {2}.</p>{picture}<table>{rows}</table></html>\n",
        report.devices.join(", ").replace('<', "&lt;"),
        report.host,
        if report.driver.is_empty() { "none" } else { &report.driver },
    )
}

async fn history(context: &Context) -> Result<(), Failure> {
    let kept: Vec<Kept> = context.client().await?.get("/api/v1/gpu/benchmarks?limit=100").await?;
    print(context.global.output.format, &kept, |kept| {
        let mut table = Table::new(&["NUMBER", "TIME", "HOST", "DEVICES", "FIGURES"]);
        for k in kept {
            let seconds = (now_ms() - k.report.time) / 1000;
            let ago = format!("{} ago", units::micros(seconds as f64 * 1e6));
            table.row(vec![
                k.number.to_string(),
                ago,
                k.report.host.clone(),
                k.report.devices.join(", "),
                k.report.figures.len().to_string(),
            ]);
        }
        table
    });
    Ok(())
}

/// The roof that was asked for: a card's, the processor's, this machine's GPU's.
async fn roof(context: &Context, fixture: Option<&str>, options: &cli::Roofline) -> Result<Roofline, Failure> {
    if let Some(name) = &options.card {
        return Ok(Roofline::of_card(&super::card_of(name)?));
    }
    let gpu = if options.cpu { None } else { Nvml::find(fixture).ok().and_then(|n| n.device(0).ok()?.name().ok()) };
    // What was measured on this host before serves; else the processor is measured now, and a card taken from the sheet.
    let device = if gpu.is_some() { "gpu 0" } else { "cpu" };
    if fixture.is_none()
        && let Ok(client) = context.client().await
    {
        let kept: Vec<Kept> = client.get("/api/v1/gpu/benchmarks?limit=100").await.unwrap_or_default();
        if let Some(roof) = kept.iter().filter(|k| k.report.host == host()).find_map(|k| k.report.roofline(device)) {
            return Ok(roof);
        }
    }
    if let Some(name) = gpu {
        return sheet::find(&name).map(|card| Roofline::of_card(&card)).ok_or_else(|| {
            GpuError::Invalid(format!("the sheet lacks '{name}'; measure it: slipway gpu bench")).into()
        });
    }
    Ok(processor()?)
}

/// The processor's ceilings, measured now.
fn processor() -> Result<Roofline, GpuError> {
    say("measuring the processor; `slipway gpu bench --cpu` keeps the figures");
    let figures = bench::cpu::run(Effort::QUICK, |_| {});
    let devices = vec![bench::cpu::model()];
    let report = Report { time: now_ms(), host: host(), devices, driver: String::new(), figures };
    report.roofline("cpu").ok_or_else(|| GpuError::Invalid("the processor's ceilings could not be measured".into()))
}

/// A card in theory beside this machine's processor as measured.
pub(super) fn against_cpu(context: &Context, name: &str) -> Result<(), Failure> {
    let (card, cpu) = (Roofline::of_card(&super::card_of(name)?), processor()?);
    let rate = |roof: &Roofline, p| roof.ceiling(p).map_or(0.0, |c| c.tera * 1000.0);
    let main = |roof: &Roofline| roof.main_memory().map_or(0.0, |m| m.gigabytes);
    let mut rows: Vec<(String, f64, f64)> = [Precision::Fp64, Precision::Fp32]
        .iter()
        .map(|p| (format!("{p}, GFLOP/s"), rate(&cpu, *p), rate(&card, *p)))
        .collect();
    // Processors compute these in fp32.
    rows.push((
        "bf16 or the next that there is, GFLOP/s".into(),
        rate(&cpu, Precision::Bf16),
        rate(&card, Precision::Bf16),
    ));
    rows.push(("main memory, GB/s".into(), main(&cpu), main(&card)));
    print(context.global.output.format, &rows, |rows| {
        let mut table = Table::owned(vec![
            "WHAT".into(),
            format!("{}, measured", cpu.machine),
            format!("{}, in theory", card.machine),
            "RATIO".into(),
        ]);
        for (what, a, b) in rows {
            table.row(vec![what.clone(), format!("{a:.0}"), format!("{b:.0}"), format!("{:.0}x", b / a)]);
        }
        table
    });
    Ok(())
}

pub(super) async fn roofline(context: &Context, fixture: Option<&str>, options: &cli::Roofline) -> Result<(), Failure> {
    let works = options.ops.iter().map(|op| Work::parse(op)).collect::<Result<Vec<_>, _>>()?;
    let roof = roof(context, fixture, options).await?;
    let places: Vec<Place> = works.iter().filter_map(|w| roof.place(w)).collect();
    if context.global.output.format == Format::Svg {
        print_text(&draw::roofline(&roof, &places));
        return Ok(());
    }
    let mut measured = Vec::new();
    if options.measure {
        for work in &works {
            let (m, n, k) = work.gemm.ok_or_else(|| {
                GpuError::Invalid(format!("'{}' is no matrix product, which is what can be measured", work.name))
            })?;
            measured.push(if options.cpu {
                bench::cpu::measure_gemm(m, n, k, work.precision)?
            } else {
                bench::cuda::measure_gemm(m, n, k, work.precision)?
            });
        }
    }
    let json = serde_json::json!({ "roofline": roof, "work": places, "measured_seconds": measured });
    if context.global.output.format == Format::Table {
        print_text(&format!(
            "{}, {}\n{}",
            roof.machine,
            if roof.measured { "measured" } else { "in theory" },
            draw::terminal(&roof, &places)
        ));
    }
    print(context.global.output.format, &json, |_| {
        if places.is_empty() {
            let mut table = Table::new(&["CEILING", "RATE", "RIDGE"]);
            let main = roof.main_memory().map_or(1.0, |m| m.gigabytes);
            for c in &roof.compute {
                table.row(vec![
                    c.precision.to_string(),
                    format!("{:.3} TFLOP/s", c.tera),
                    format!("{:.1} operations a byte", c.tera * 1000.0 / main),
                ]);
            }
            for m in &roof.memory {
                table.row(vec![m.level.clone(), format!("{:.1} GB/s", m.gigabytes), String::new()]);
            }
            return table;
        }
        let mut table = Table::new(&[
            "WORK",
            "OPERATIONS",
            "BYTES",
            "INTENSITY",
            "BOUND BY",
            "AT BEST",
            "TIME",
            "TOKENS/S",
            "MEASURED",
        ]);
        for (i, p) in places.iter().enumerate() {
            table.row(vec![
                p.work.name.clone(),
                format!("{:.3e}", p.work.operations),
                units::bytes(p.work.bytes as u64),
                format!("{:.1} (ridge {:.1})", p.intensity, p.ridge),
                format!("{:?}", p.bound).to_lowercase(),
                format!("{:.2} TFLOP/s, {:.0} %", p.attainable, p.share * 100.0),
                units::micros(p.seconds * 1e6),
                p.tokens_per_second.map_or(String::new(), |t| format!("{t:.0}")),
                measured.get(i).map_or(String::new(), |s| {
                    format!("{} ({:.0} % of the roof)", units::micros(s * 1e6), p.seconds / s * 100.0)
                }),
            ]);
        }
        table
    });
    Ok(())
}

pub(super) fn fit(context: &Context, options: &cli::Fit) -> Result<(), Failure> {
    let question = Question {
        parameters: work::parameters(&options.params)?,
        precision: options.dtype.parse::<Precision>()?,
        sequence: options.seq,
        batch: options.batch,
        optimizer: options.train.as_deref().map(str::parse).transpose()?,
        checkpointing: options.checkpointing,
    };
    let answer = fit::fit(&question)?;
    let format = context.global.output.format;
    if format == Format::Table {
        let mut table = Table::new(&["MEMORY FOR", "BYTES", "HOW"]);
        for part in &answer.parts {
            table.row(vec![part.what.into(), units::bytes(part.bytes as u64), part.formula.clone()]);
        }
        table.row(vec!["all".into(), units::bytes(answer.bytes as u64), format!("shape: {}", answer.shape.source)]);
        print_text(&format!("{table}\n"));
    }
    print(format, &answer, |answer| {
        let mut table = Table::new(&["FITS ON", "COUNT", "MEMORY", "TOKENS/S AT BEST"]);
        for f in &answer.fits {
            table.row(vec![
                f.name.clone(),
                f.count.to_string(),
                units::bytes(f.memory as u64),
                f.tokens_per_second.map_or("-".into(), |t| format!("{t:.0}")),
            ]);
        }
        table
    });
    Ok(())
}
