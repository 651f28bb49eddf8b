//! `slipway gpu bench` and `roofline`: measured and theoretical performance.

use slipway_core::clock::now_ms;
use slipway_core::units;
use slipway_gpu::bench::{self, Effort, Figure, Report, compare};
use slipway_gpu::nvml::Nvml;
use slipway_gpu::roofline::{Place, Roofline};
use slipway_gpu::sheet::{self, Precision};
use slipway_gpu::work::Work;
use slipway_gpu::{GpuError, draw};

use super::Context;
use crate::Failure;
use crate::cli::Format;
use crate::cli::gpu as cli;
use crate::output::{Table, print, print_note, print_text};

/// GPUs that are slower than the fastest GPU of the same model by more than this share are reported.
const OUTLIER_SHARE: f64 = 0.05;

/// The host name of this machine.
fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A report stored on the server, with its number.
#[derive(Debug, serde::Deserialize, serde::Serialize)]
struct StoredReport {
    number: i64,
    #[serde(flatten)]
    report: Report,
}

pub(super) async fn bench(context: &Context, fixture: Option<&str>, options: cli::Bench) -> Result<(), Failure> {
    if options.history {
        return history(context).await;
    }
    if fixture.is_some() && !options.cpu {
        return Err(GpuError::Invalid("a simulated GPU cannot be measured; measure the CPU with --cpu".into()).into());
    }
    let effort = if options.quick { Effort::QUICK } else { Effort::FULL };
    let note = |text: &str| {
        if !context.global.quiet {
            print_note(format_args!("measuring {text}"));
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

    let needs_client = !options.no_store || options.compare.is_some();
    let client = if needs_client { Some(context.client().await?) } else { None };
    let mut before = None;
    if let (Some(number), Some(client)) = (options.compare, &client) {
        let stored: Vec<StoredReport> = client.get("/api/v1/gpu/benchmarks?limit=1000").await?;
        let matches = |s: &&StoredReport| {
            if number == 0 {
                s.report.host == report.host && s.report.devices == report.devices
            } else {
                s.number == number
            }
        };
        before = stored.into_iter().find(|s| matches(&s));
        if before.is_none() {
            print_note("there is no earlier report to compare with");
        }
    }
    if let (Some(client), false) = (&client, options.no_store) {
        let body = serde_json::to_value(&report).unwrap_or_default();
        let created: serde_json::Value = client.post("/api/v1/gpu/benchmarks", &body).await?;
        print_note(format_args!("stored as report {}", created["number"]));
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
            Table::new(&["BENCHMARK", "DEVICE", "FORMAT", "SIZE", "MEDIAN", "RANGE", "OF PEAK", "GRADE", "CHANGE"]);
        for f in &report.figures {
            let difference = differences.iter().find(|d| d.now == *f);
            table.row(row(f, difference));
        }
        table
    });
    for line in report.outliers(OUTLIER_SHARE).into_iter().chain(
        report.figures.iter().filter_map(|f| f.cause.clone().map(|c| format!("{} on {}: {c}", f.what, f.device))),
    ) {
        print_note(line);
    }
    if differences.iter().any(|d| d.regression) { Err(Failure::Findings) } else { Ok(()) }
}

/// The table row of one figure, with its change since the earlier report.
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

/// Renders the report as a standalone HTML page with the roofline.
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
    let stored: Vec<StoredReport> = context.client().await?.get("/api/v1/gpu/benchmarks?limit=100").await?;
    print(context.global.output.format, &stored, |stored| {
        let mut table = Table::new(&["NUMBER", "TIME", "HOST", "DEVICES", "FIGURES"]);
        for s in stored {
            let seconds = (now_ms() - s.report.time) / 1000;
            let ago = format!("{} ago", units::micros(seconds as f64 * 1e6));
            table.row(vec![
                s.number.to_string(),
                ago,
                s.report.host.clone(),
                s.report.devices.join(", "),
                s.report.figures.len().to_string(),
            ]);
        }
        table
    });
    Ok(())
}

/// The requested roofline: of a card, of this machine's CPU, or of its GPU.
async fn roof(context: &Context, fixture: Option<&str>, options: &cli::Roofline) -> Result<Roofline, Failure> {
    if let Some(name) = &options.card {
        return Ok(Roofline::from_card(&super::find_card(name)?));
    }
    let name = || -> Result<String, GpuError> { Ok(super::nvml(fixture)?.device(0)?.name()?) };
    // The figures of a requested fixture are never replaced by those of another machine.
    let gpu = match (options.cpu, fixture) {
        (true, _) => None,
        (false, Some(_)) => Some(name()?),
        (false, None) => name().ok(),
    };
    // Prefer a stored measurement of this host; otherwise measure the CPU now, or use the theoretical values of the GPU.
    let device = if gpu.is_some() { "gpu 0" } else { "cpu" };
    if fixture.is_none()
        && let Ok(client) = context.client().await
    {
        let stored: Vec<StoredReport> = client.get("/api/v1/gpu/benchmarks?limit=100").await.unwrap_or_default();
        if let Some(roof) = stored.iter().filter(|s| s.report.host == host()).find_map(|s| s.report.roofline(device)) {
            return Ok(roof);
        }
    }
    if let Some(name) = gpu {
        return sheet::find(&name).map(|card| Roofline::from_card(&card)).ok_or_else(|| {
            GpuError::Invalid(format!("no data sheet for '{name}'; measure it with: slipway gpu bench")).into()
        });
    }
    Ok(cpu_roofline()?)
}

/// Measures the roofline of this machine's CPU.
fn cpu_roofline() -> Result<Roofline, GpuError> {
    print_note("measuring the CPU; `slipway gpu bench --cpu` stores the results");
    let figures = bench::cpu::run(Effort::QUICK, |_| {});
    let devices = vec![bench::cpu::model()];
    let report = Report { time: now_ms(), host: host(), devices, driver: String::new(), figures };
    report.roofline("cpu").ok_or_else(|| GpuError::Invalid("the peak rates of the CPU could not be measured".into()))
}

/// Compares the theoretical rates of a card with the measured rates of this machine's CPU.
pub(super) fn against_cpu(context: &Context, name: &str) -> Result<(), Failure> {
    let (card, cpu) = (Roofline::from_card(&super::find_card(name)?), cpu_roofline()?);
    let rate = |roof: &Roofline, p| roof.ceiling(p).map_or(0.0, |c| c.tera * 1000.0);
    let main = |roof: &Roofline| roof.main_memory().map_or(0.0, |m| m.gigabytes);
    let mut rows: Vec<(String, f64, f64)> = [Precision::Fp64, Precision::Fp32]
        .iter()
        .map(|p| (format!("{p}, GFLOP/s"), rate(&cpu, *p), rate(&card, *p)))
        .collect();
    // CPUs compute bf16 in fp32.
    rows.push((
        "bf16, or the nearest available precision, GFLOP/s".into(),
        rate(&cpu, Precision::Bf16),
        rate(&card, Precision::Bf16),
    ));
    rows.push(("main memory, GB/s".into(), main(&cpu), main(&card)));
    print(context.global.output.format, &rows, |rows| {
        let mut table = Table::with_columns(vec![
            "RATE".into(),
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
    let places: Vec<Place> = works.iter().map(|w| roof.place(w)).collect::<Result<_, _>>()?;
    if context.global.output.format == Format::Svg {
        print_text(&draw::roofline(&roof, &places));
        return Ok(());
    }
    let mut measured = Vec::new();
    if options.measure {
        for work in &works {
            let (m, n, k) = work.gemm.ok_or_else(|| {
                GpuError::Invalid(format!(
                    "'{}' is not a matrix product; only matrix products can be measured",
                    work.name
                ))
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
                    format!("{:.1} operations per byte", c.tera * 1000.0 / main),
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
