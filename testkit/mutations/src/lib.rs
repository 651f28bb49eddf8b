//! Property tests for parsers of bytes from users and peers: arbitrary bytes, and mutations of valid inputs.
//!
//! A parser may accept or reject an input. It must not panic, take longer than [`MAX_TIME`], or need more memory than [`MAX_GROWTH_KIB`]
//! for an input of at most [`MAX_INPUT_BYTES`]. `PROPTEST_CASES` sets the number of inputs; the default takes a second or two. With
//! `SLIPWAY_FUZZ_SECONDS` each parser is fed with new inputs for that time instead (`make fuzz`).

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};

/// Maximum bytes of an input.
pub const MAX_INPUT_BYTES: usize = 16 << 10;
/// Maximum CPU time for one input; a parser takes milliseconds.
pub const MAX_TIME: Duration = Duration::from_secs(5);
/// Maximum growth of the peak memory of the process during all inputs, in KiB. Other tests in the process count too.
pub const MAX_GROWTH_KIB: u64 = 1 << 20;
/// Number of inputs without `PROPTEST_CASES`.
const DEFAULT_CASES: u32 = 1000;

/// Texts that parsers of numbers, strings and nested structures often treat wrongly.
const TOKENS: &[&str] = &[
    "-1",
    "0",
    "18446744073709551616",
    "9223372036854775807",
    "-9223372036854775808",
    "4294967295",
    "1e999",
    "nan",
    "0x",
    "\0",
    "\u{feff}",
    "é",
    "\u{1f600}",
    "\"",
    "'",
    "\\",
    "`",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    ",",
    ":",
    ": ",
    "- ",
    "&a ",
    "*a",
    "<<: *a",
    "!!binary ",
    "|\n",
    "# ",
    "\r\n",
    "\t",
    "\n",
    "=",
    "%",
    "null",
    "~",
    "true",
    "/",
    "..",
    ".",
    "\\u0000",
    "\\ud800",
];

/// One change of an input. Positions are fractions of its length, so that they remain valid after other changes.
#[derive(Debug, Clone)]
enum Mutation {
    Replace(f64, u8),
    Delete(f64, f64),
    /// Repeats a range of the input.
    Repeat(f64, f64, usize),
    /// Inserts a token, repeatedly.
    Insert(f64, &'static str, usize),
    Truncate(f64),
    Bytes(f64, Vec<u8>),
}

impl Mutation {
    fn apply(&self, input: &mut Vec<u8>) {
        let length = input.len();
        let at = |fraction: f64| ((length as f64 * fraction) as usize).min(length);
        let range = |a: f64, b: f64| at(a).min(at(a + b * b))..at(a + b * b);
        match self {
            Self::Replace(position, byte) => {
                if let Some(old) = input.get_mut(at(*position)) {
                    *old = *byte;
                }
            }
            Self::Delete(from, part) => drop(input.drain(range(*from, *part))),
            Self::Repeat(from, part, times) => {
                let range = range(*from, *part);
                let repeated = input[range.clone()].repeat(*times);
                input.splice(range, repeated);
            }
            Self::Insert(position, token, times) => {
                let position = at(*position);
                input.splice(position..position, token.repeat(*times).into_bytes());
            }
            Self::Truncate(position) => input.truncate(at(*position)),
            Self::Bytes(position, bytes) => {
                let position = at(*position);
                input.splice(position..position, bytes.iter().copied());
            }
        }
        input.truncate(MAX_INPUT_BYTES);
    }
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let fraction = || 0.0..1.0_f64;
    let times = || prop_oneof![6 => Just(1_usize), 3 => 2..6_usize, 1 => Just(2000_usize)];
    prop_oneof![
        3 => (fraction(), any::<u8>()).prop_map(|(at, byte)| Mutation::Replace(at, byte)),
        2 => (fraction(), fraction()).prop_map(|(at, part)| Mutation::Delete(at, part)),
        2 => (fraction(), fraction(), times()).prop_map(|(at, part, times)| Mutation::Repeat(at, part, times)),
        4 => (fraction(), proptest::sample::select(TOKENS), times()).prop_map(|(at, token, times)| Mutation::Insert(at, token, times)),
        1 => fraction().prop_map(Mutation::Truncate),
        1 => (fraction(), proptest::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Mutation::Bytes(at, bytes)),
    ]
}

/// Arbitrary bytes, arbitrary text, or a valid input with up to four changes.
fn inputs(valid: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let mutated =
        (proptest::sample::select(valid), proptest::collection::vec(mutation(), 0..5)).prop_map(|(mut input, all)| {
            all.iter().for_each(|mutation| mutation.apply(&mut input));
            input
        });
    let tokens =
        proptest::collection::vec(proptest::sample::select(TOKENS), 0..40).prop_map(|all| all.concat().into_bytes());
    prop_oneof![
        1 => proptest::collection::vec(any::<u8>(), 0..200),
        1 => "\\PC{0,80}".prop_map(String::into_bytes),
        1 => tokens,
        9 => mutated,
    ]
}

/// CPU time of this thread (`proc_pid_schedstat`, first field), which other work on the machine does not change; 0 if it is unknown.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0))
}

/// Peak memory of the process in KiB; 0 if it is unknown.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// Feeds a parser with bytes: arbitrary ones, and mutations of the `valid` inputs.
///
/// # Panics
/// With the smallest input found that violates a rule.
pub fn feed_bytes<B: AsRef<[u8]>>(valid: &[B], parse: impl Fn(&[u8])) {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = DEFAULT_CASES;
    }
    let peak = peak_kib();
    let valid: Vec<Vec<u8>> = valid.iter().map(|input| input.as_ref().to_vec()).collect();
    let inputs = inputs(valid);
    let started = Instant::now();
    loop {
        // A new runner starts from a new random seed.
        let result = TestRunner::new(config.clone()).run(&inputs, |input| {
            let began = cpu_time();
            parse(&input);
            let took = cpu_time().saturating_sub(began);
            prop_assert!(took < MAX_TIME, "the parser took {took:?}");
            let growth = peak_kib().saturating_sub(peak);
            prop_assert!(growth < MAX_GROWTH_KIB, "the parser needed {growth} KiB");
            Ok(())
        });
        assert!(result.is_ok(), "{}", result.err().map(|error| failure(&error)).unwrap_or_default());
        if started.elapsed() >= fuzz_time() {
            return;
        }
    }
}

/// The input as a literal in Rust, and then the rule that it violates: the end of a log is what is read first.
fn failure(error: &TestError<Vec<u8>>) -> String {
    match error {
        TestError::Fail(reason, input) => format!("for the input b\"{}\": {reason}", input.escape_ascii()),
        TestError::Abort(reason) => reason.to_string(),
    }
}

/// The time that `SLIPWAY_FUZZ_SECONDS` sets; without it, one round of inputs is enough.
fn fuzz_time() -> Duration {
    let seconds = std::env::var("SLIPWAY_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(0))
}

/// Like [`feed_bytes`], for a parser of text. Bytes that are not UTF-8 are replaced.
///
/// # Panics
/// See [`feed_bytes`].
pub fn feed<T: AsRef<str>>(valid: &[T], parse: impl Fn(&str)) {
    let valid: Vec<&[u8]> = valid.iter().map(|text| text.as_ref().as_bytes()).collect();
    feed_bytes(&valid, |bytes| parse(&String::from_utf8_lossy(bytes)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panics(parse: impl Fn(&str)) -> bool {
        let feeding = std::panic::AssertUnwindSafe(|| feed(&["key: [1, 2]"], parse));
        std::panic::catch_unwind(feeding).is_err()
    }

    #[test]
    fn faulty_parsers_are_found() {
        assert!(!panics(|text| drop(text.to_owned())));
        assert!(panics(|text| assert!(!text.contains("[["))));
        assert!(panics(|text| assert!(!text.contains("\\"))));
    }

    #[test]
    fn cpu_time_counts_work_and_not_waiting() {
        let began = cpu_time();
        std::thread::sleep(Duration::from_millis(300));
        assert!(cpu_time() - began < Duration::from_millis(200));
        let started = Instant::now();
        while cpu_time() - began < Duration::from_millis(5) {
            assert!(started.elapsed() < Duration::from_secs(30), "the CPU time does not advance");
        }
    }
}
