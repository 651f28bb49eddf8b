//! Cron expressions with seconds, as Kubeflow reads them: version 1.2 of the Go library `robfig/cron`.
//!
//! The fields are second, minute, hour, day of month, month and day of week. The last one may be left out; so an expression of five
//! fields, which means minutes to day of week elsewhere, is read as seconds to month.

use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, Zoned};

/// A day that is restricted by neither or only one of its two fields must match both; else one suffices.
const STAR: u64 = 1 << 63;
/// Maximum bytes of an expression.
const MAX_LENGTH: usize = 1024;
/// Years in which a slot must be.
const YEARS: i16 = 5;

/// A parsed expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cron {
    /// Times whose fields are in these sets; bit n stands for n.
    Fields(Box<Sets>),
    /// Every so many seconds.
    Every(i64),
}

/// The sets of the six fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sets {
    second: u64,
    minute: u64,
    hour: u64,
    day: u64,
    month: u64,
    weekday: u64,
}

struct Bounds {
    min: u32,
    max: u32,
    names: &'static [&'static str],
}

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const SIXTY: Bounds = Bounds { min: 0, max: 59, names: &[] };
const HOUR: Bounds = Bounds { min: 0, max: 23, names: &[] };
const DAY: Bounds = Bounds { min: 1, max: 31, names: &[] };
const MONTH: Bounds = Bounds { min: 1, max: 12, names: MONTHS };
const WEEKDAY: Bounds = Bounds { min: 0, max: 6, names: WEEKDAYS };

impl Bounds {
    fn set(&self, min: u32, max: u32, step: u32) -> u64 {
        (min..=max).step_by(step as usize).fold(0, |set, bit| set | 1 << bit)
    }

    /// The set of a field: ranges, separated by commas.
    fn parse(&self, field: &str) -> Result<u64, String> {
        field.split(',').filter(|range| !range.is_empty()).try_fold(0, |set, range| Ok(set | self.range(range)?))
    }

    /// `*`, `?`, `N` or `N-M`, then perhaps `/STEP`.
    fn range(&self, text: &str) -> Result<u64, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let ends: Vec<&str> = parts[0].split('-').collect();
        let (mut star, mut step) = (0, 1);
        let (start, mut end) = if matches!(ends[0], "*" | "?") {
            star = STAR;
            (self.min, self.max)
        } else {
            let start = self.number(ends[0])?;
            match ends.as_slice() {
                [_] => (start, start),
                [_, end] => (start, self.number(end)?),
                _ => return Err(format!("Too many hyphens: {text}")),
            }
        };
        match parts.as_slice() {
            [_] => {}
            [_, text] => {
                step = integer(text)?;
                if ends.len() == 1 {
                    end = self.max;
                }
            }
            _ => return Err(format!("Too many slashes: {text}")),
        }
        if start < self.min {
            return Err(format!("Beginning of range ({start}) below minimum ({}): {text}", self.min));
        }
        if end > self.max {
            return Err(format!("End of range ({end}) above maximum ({}): {text}", self.max));
        }
        if start > end {
            return Err(format!("Beginning of range ({start}) beyond end of range ({end}): {text}"));
        }
        if step == 0 {
            return Err(format!("Step of range should be a positive number: {text}"));
        }
        Ok(self.set(start, end, step) | star)
    }

    fn number(&self, text: &str) -> Result<u32, String> {
        let names = (self.min..).zip(self.names);
        for (number, name) in names {
            if text.eq_ignore_ascii_case(name) {
                return Ok(number);
            }
        }
        integer(text)
    }
}

fn integer(text: &str) -> Result<u32, String> {
    match text.parse::<i64>() {
        Ok(number) if number < 0 => Err(format!("Negative number ({number}) not allowed: {text}")),
        Ok(number) => Ok(u32::try_from(number).unwrap_or(u32::MAX)),
        Err(error) => Err(format!("Failed to parse int from {text}: {error}")),
    }
}

/// Splits the time zone from an expression such as `TZ=Europe/Berlin 0 0 9 * * *`; later versions of the Go library write `CRON_TZ=`.
///
/// # Errors
/// The time zone is unknown.
pub(super) fn split_zone(text: &str) -> Result<(Option<TimeZone>, &str), String> {
    let Some(rest) = ["TZ=", "CRON_TZ="].iter().find_map(|prefix| text.strip_prefix(prefix)) else {
        return Ok((None, text));
    };
    let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let zone = TimeZone::get(name).map_err(|_| format!("Provided bad location {name}: unknown time zone {name}"))?;
    Ok((Some(zone), rest.trim_start()))
}

impl Cron {
    /// Parses an expression, or a descriptor such as `@daily` or `@every 1h30m`.
    ///
    /// # Errors
    /// The reason, in the words of the Go library.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("Empty spec string".into());
        }
        if text.len() > MAX_LENGTH {
            return Err(format!("it has more than {MAX_LENGTH} bytes"));
        }
        if text.starts_with('@') {
            return Self::descriptor(text);
        }
        let mut fields: Vec<&str> = text.split_whitespace().collect();
        if !(5..=6).contains(&fields.len()) {
            return Err(format!("Expected 5 to 6 fields, found {}: {text}", fields.len()));
        }
        if fields.len() == 5 {
            fields.push("*");
        }
        Ok(Self::Fields(Box::new(Sets {
            second: SIXTY.parse(fields[0])?,
            minute: SIXTY.parse(fields[1])?,
            hour: HOUR.parse(fields[2])?,
            day: DAY.parse(fields[3])?,
            month: MONTH.parse(fields[4])?,
            weekday: WEEKDAY.parse(fields[5])?,
        })))
    }

    fn descriptor(text: &str) -> Result<Self, String> {
        let expression = match text {
            "@yearly" | "@annually" => "0 0 0 1 1 *",
            "@monthly" => "0 0 0 1 * *",
            "@weekly" => "0 0 0 * * 0",
            "@daily" | "@midnight" => "0 0 0 * * *",
            "@hourly" => "0 0 * * * *",
            _ => {
                let Some(duration) = text.strip_prefix("@every ") else {
                    return Err(format!("Unrecognized descriptor: {text}"));
                };
                let seconds = go_duration(duration)
                    .ok_or_else(|| format!("Failed to parse duration {text}: time: invalid duration {duration:?}"))?;
                return Ok(Self::Every(seconds.max(1)));
            }
        };
        Self::parse(expression)
    }

    /// The first time after `after`, in seconds since the Unix epoch; `None` if there is none within five years.
    pub fn next(&self, after: i64, zone: &TimeZone) -> Option<i64> {
        match self {
            Self::Every(seconds) => after.checked_add(*seconds),
            Self::Fields(sets) => sets.next(after, zone),
        }
    }
}

impl Sets {
    fn next(&self, after: i64, zone: &TimeZone) -> Option<i64> {
        let mut time = Timestamp::from_second(after.checked_add(1)?).ok()?.to_zoned(zone.clone());
        let last_year = time.year().saturating_add(YEARS);
        loop {
            let date = time.date();
            if date.year() > last_year {
                return None;
            }
            if contains(self.month, date.month())
                && self.has_day(date)
                && let Some(found) = self.next_in_day(&time)
            {
                return Some(found);
            }
            let next = if contains(self.month, date.month()) {
                date.tomorrow().ok()?
            } else {
                date.first_of_month().checked_add(1.month()).ok()?
            };
            time = next.to_zoned(zone.clone()).ok()?;
        }
    }

    /// The first time from `from` on that is on the same day. It walks over real time, so that an hour that the change to summer time
    /// leaves out has no slot, and one that comes twice has two.
    fn next_in_day(&self, from: &Zoned) -> Option<i64> {
        let mut time = from.clone();
        while time.date() == from.date() {
            let (minute, second) = (i64::from(time.minute()), i64::from(time.second()));
            let skip = if !contains(self.hour, time.hour()) {
                3600 - minute * 60 - second
            } else if !contains(self.minute, time.minute()) {
                60 - second
            } else if !contains(self.second, time.second()) {
                1
            } else {
                return Some(time.timestamp().as_second());
            };
            time = time.checked_add(skip.seconds()).ok()?;
        }
        None
    }

    fn has_day(&self, date: Date) -> bool {
        let weekday = match date.weekday() {
            Weekday::Sunday => 0,
            day => day.to_monday_one_offset(),
        };
        let (day, weekday) = (contains(self.day, date.day()), contains(self.weekday, weekday));
        if (self.day | self.weekday) & STAR != 0 { day && weekday } else { day || weekday }
    }
}

fn contains(set: u64, bit: i8) -> bool {
    set & 1 << bit != 0
}

/// Whole seconds of a duration in Go's form, such as `1h30m` or `1.5h`; `None` if it is malformed.
fn go_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let length = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..length] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        rest = &rest[length..];
        total += number * unit;
    }
    // Go's durations end at about 292 years.
    #[allow(clippy::cast_possible_truncation)] // bounded by the line above it
    let seconds = if total < 9.2e9 { total as i64 } else { return None };
    Some(if negative { -seconds } else { seconds })
}
