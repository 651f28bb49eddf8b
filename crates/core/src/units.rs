//! Human-readable bytes and durations.

use std::time::Duration;

/// Bytes with a binary unit: `512 B`, `1.5 KiB`, `40.0 MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A duration given in microseconds: `37 µs`, `1.4 ms`, `2.0 s`, `3m 20s`.
pub fn micros(us: f64) -> String {
    if us < 1_000.0 {
        format!("{us:.0} µs")
    } else if us < 1_000_000.0 {
        format!("{:.1} ms", us / 1e3)
    } else if us < 60_000_000.0 {
        format!("{:.1} s", us / 1e6)
    } else {
        let s = (us / 1e6) as u64;
        format!("{}m {}s", s / 60, s % 60)
    }
}

/// Parses a duration of one unit: `7d`, `12h`, `30m` or `90s`.
///
/// # Errors
/// A message with the text, if it is no such duration, zero, or longer than a hundred years, which cannot be added to times.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("'{text}' is no duration; use a number with d, h, m or s, such as 7d");
    let split = text.len().checked_sub(1).filter(|at| text.is_char_boundary(*at)).ok_or_else(invalid)?;
    let (number, unit) = text.split_at(split);
    let seconds: u64 = match unit {
        "d" => 86400,
        "h" => 3600,
        "m" => 60,
        "s" => 1,
        _ => return Err(invalid()),
    };
    let number: u64 = number.parse().map_err(|_| invalid())?;
    let total = number.checked_mul(seconds).filter(|total| (1..=100 * 366 * 86400).contains(total));
    total.map(Duration::from_secs).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_units_start_at_their_thresholds() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(micros(999.0), "999 µs");
        assert_eq!(micros(1_400.0), "1.4 ms");
        assert_eq!(micros(200e6), "3m 20s");
    }

    #[test]
    fn durations_have_a_unit_and_a_limit() {
        let seconds = |text: &str| parse_duration(text).map(|d| d.as_secs());
        assert_eq!((seconds("7d"), seconds("12h")), (Ok(7 * 86400), Ok(12 * 3600)));
        assert_eq!((seconds("30m"), seconds("90s")), (Ok(1800), Ok(90)));
        for invalid in ["", "d", "7", "7w", "0s", "-1d", "7\u{e4}", "99999999999999999999d", "40000d"] {
            assert!(seconds(invalid).is_err(), "{invalid}");
        }
    }
}
