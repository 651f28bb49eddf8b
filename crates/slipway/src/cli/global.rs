//! The options that every command accepts. Their help is short, one line each, since it is part of the help of every command: under a
//! heading of their own, after the options of the command.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::builder::{EnumValueParser, PossibleValue, TypedValueParser};
use clap::{Arg, ArgAction, Args, ValueEnum};

/// The heading of the options that every command accepts.
const GLOBAL_OPTIONS: &str = "Global options";

/// The options `--help` and `--version`, in place of clap's, which cannot have a heading. Both forms of help are the short one, with one
/// line per option; `slipway help COMMAND` also explains the possible values.
fn help_and_version() -> [Arg; 2] {
    let flag = |name: &'static str, short, action, text: &'static str| {
        Arg::new(name).long(name).short(short).action(action).help(text).global(true).help_heading(GLOBAL_OPTIONS)
    };
    [
        flag("help", 'h', ArgAction::HelpShort, "Print help").display_order(HELP_ORDER),
        flag("version", 'V', ArgAction::Version, "Print the version").display_order(HELP_ORDER),
    ]
}

/// The position of `--help` and `--version`: after all other options.
const HELP_ORDER: usize = 1000;

/// Options that every command accepts.
#[derive(Debug, Args)]
#[command(next_help_heading = GLOBAL_OPTIONS, args = help_and_version())]
pub(crate) struct Global {
    /// URL of the control plane; by default that of this machine
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) server: Option<String>,
    /// Accept only the server certificate with this SHA-256
    #[arg(long, global = true, value_name = "FINGERPRINT")]
    pub(crate) tls_fingerprint: Option<String>,
    /// Send the token even over plain http, readable on the network
    #[arg(long, global = true)]
    pub(crate) insecure: bool,
    /// State folder
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Format: table, wide, json, yaml, name, svg, html; or x.json
    #[arg(
        short,
        long,
        global = true,
        value_name = "FORMAT|FILE",
        value_parser = OutputParser,
        default_value = "table",
        hide_default_value = true,
        hide_possible_values = true
    )]
    pub(crate) output: Output,
    /// Log more (twice: debug)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Print results and errors only
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Disable colours (also with NO_COLOR)
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
    /// Answer yes to all prompts
    #[arg(short, long, global = true)]
    pub(crate) yes: bool,
    /// Show what would change, without changing anything
    #[arg(long, global = true)]
    pub(crate) dry_run: bool,
}

/// An output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Human-readable columns
    Table,
    /// JSON
    Json,
    /// YAML
    Yaml,
    /// Names only, one per line
    Name,
    /// Human-readable, with more columns
    Wide,
    /// An SVG image, if the command supports it
    Svg,
    /// An HTML page, if the command supports it
    Html,
}

/// The output format and the output file.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) format: Format,
    /// The file that is written instead of stdout.
    pub(crate) file: Option<PathBuf>,
}

/// Parses the name of a format, or of a file whose extension is a format.
#[derive(Debug, Clone)]
struct OutputParser;

impl TypedValueParser for OutputParser {
    type Value = Output;

    fn parse_ref(&self, command: &clap::Command, argument: Option<&Arg>, value: &OsStr) -> Result<Output, clap::Error> {
        let extension = Path::new(value).extension().and_then(OsStr::to_str).unwrap_or_default();
        match Format::from_str(extension, false) {
            Ok(format @ (Format::Json | Format::Yaml | Format::Svg | Format::Html)) => {
                Ok(Output { format, file: Some(value.into()) })
            }
            _ => {
                let format = EnumValueParser::<Format>::new().parse_ref(command, argument, value)?;
                Ok(Output { format, file: None })
            }
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(Format::value_variants().iter().filter_map(Format::to_possible_value)))
    }
}
