//! Times as the protocols use them: whole milliseconds since the Unix epoch.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

/// Milliseconds since the Unix epoch, UTC.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// Formats a time as RFC 3339 in whole seconds and UTC: `2026-01-31T09:05:00Z`. Times outside the years -9999 to 9999 are clamped to
/// the nearest time in that range.
pub fn rfc3339(milliseconds: i64) -> String {
    let end = if milliseconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
    let seconds = Timestamp::from_second(milliseconds.div_euclid(1000));
    seconds.unwrap_or_else(|_| Timestamp::from_second(end.as_second()).unwrap_or(end)).to_string()
}

/// Parses an RFC 3339 time, with or without fractions of a second, in UTC (`Z`) or with an offset. Returns milliseconds since the Unix
/// epoch, rounded down, or `None` for invalid text.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    // `jiff` accepts more than RFC 3339 (no seconds, signed years, time zone names), so the form is checked first.
    let digits_as_zero = |c: char| if c.is_ascii_digit() { '0' } else { c.to_ascii_uppercase() };
    let form: String = text.chars().map(digits_as_zero).collect();
    let mut zone = form.strip_prefix("0000-00-00T00:00:00")?;
    if let Some(fraction) = zone.strip_prefix('.') {
        zone = fraction.trim_start_matches('0');
        if zone.len() == fraction.len() {
            return None;
        }
    }
    if !matches!(zone, "Z" | "+00:00" | "-00:00") {
        return None;
    }
    let time: Timestamp = text.parse().ok()?;
    i64::try_from(time.as_nanosecond().div_euclid(1_000_000)).ok()
}

#[cfg(test)]
mod tests {
    use super::{parse_rfc3339, rfc3339};

    #[test]
    fn valid_dates_are_parsed() {
        for time in
            [0, 951_782_399_000, 951_782_400_000, 1_798_761_599_000, 4_102_444_800_000, -1000, -2_208_988_800_000]
        {
            assert_eq!(parse_rfc3339(&rfc3339(time)), Some(time));
        }
        assert_eq!(parse_rfc3339("1970-01-01T00:00:01.5Z"), Some(1500));
        assert_eq!(parse_rfc3339("1970-01-01T00:00:01.123456+00:00"), Some(1123));
        assert_eq!(parse_rfc3339("1970-01-01T02:00:00+02:00"), Some(0));
        assert_eq!(parse_rfc3339("1969-12-31T20:30:00-03:30"), Some(0));
        assert_eq!(parse_rfc3339("1969-12-31t23:59:59.999z"), Some(-1));
        assert_eq!(parse_rfc3339("2024-02-29T00:00:00Z"), Some(1_709_164_800_000));
    }

    #[test]
    fn invalid_dates_are_rejected() {
        for invalid in [
            "",
            "1970-01-01",
            "1970-01-01T00:00:00",
            "1970-13-01T00:00:00Z",
            "no time at all, no!",
            // Days and times that do not exist.
            "2026-02-31T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2026-04-31T00:00:00Z",
            "2026-00-10T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:60:00Z",
            // Signs in fields, invalid separators.
            "+970-01-01T00:00:00Z",
            "1970-+1-01T00:00:00Z",
            "1970-01--1T00:00:00Z",
            "1970-01-01T+1:00:00Z",
            "1970-01-01T00:-1:00Z",
            "1970:01:01T00:00:00Z",
            "1970-01-01T00-00-00Z",
            "1970-01-01 00:00:00Z",
            // Invalid fractions and zones.
            "1970-01-01T00:00:00.Z",
            "1970-01-01T00:00:00.+5Z",
            "1970-01-01T00:00:00+0200",
            "1970-01-01T00:00:00+02",
            "1970-01-01T00:00:00+00:60",
            "1970-01-01T00:00:00+-1:00",
            "1970-01-01T00:00:00+02:00[Europe/Berlin]",
            "1970-01-01T00:00Z",
            "٢٠٢٦-01-01T00:00:00Z",
        ] {
            assert_eq!(parse_rfc3339(invalid), None, "{invalid}");
        }
    }

    #[test]
    fn dates_are_formatted_in_utc() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_399_999), "2000-02-28T23:59:59Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_798_761_599_000), "2026-12-31T23:59:59Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59Z");
        assert_eq!(rfc3339(i64::MAX), "9999-12-30T22:00:00Z");
        assert!(rfc3339(i64::MIN).starts_with("-009999"));
    }
}
