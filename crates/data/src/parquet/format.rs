//! Values as texts.

use super::column::Kind;
use super::thrift::Value;

/// Days from the beginning of the Julian period to 1970.
const JULIAN_EPOCH: i64 = 2_440_588;
const DAY_SECONDS: i64 = 86_400;

/// What the bytes of a value mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Annotation {
    None,
    Text,
    Unsigned,
    Date,
    /// The number of digits after the point.
    Decimal(u32),
    /// The number of units of a second.
    Timestamp(i64),
}

impl Annotation {
    /// The annotation of a node of the schema, in its new form or the one before.
    pub(super) fn of(node: &Value) -> Self {
        let scale = |value: &Value, id: i16| u32::try_from(value.integer(id).unwrap_or(0)).unwrap_or(0);
        if let Some(Value::Struct(fields)) = node.field(10)
            && let Some((id, logical)) = fields.first()
        {
            return match id {
                1 | 4 | 12 => Self::Text,
                5 => Self::Decimal(scale(logical, 1)),
                6 => Self::Date,
                8 => match logical.field(2) {
                    Some(Value::Struct(unit)) if unit.first().is_some_and(|(id, _)| *id == 1) => Self::Timestamp(1_000),
                    Some(Value::Struct(unit)) if unit.first().is_some_and(|(id, _)| *id == 2) => {
                        Self::Timestamp(1_000_000)
                    }
                    _ => Self::Timestamp(1_000_000_000),
                },
                10 if logical.field(2) == Some(&Value::Bool(false)) => Self::Unsigned,
                _ => Self::None,
            };
        }
        match node.integer(6) {
            Some(0 | 4 | 19) => Self::Text,
            Some(5) => Self::Decimal(scale(node, 7)),
            Some(6) => Self::Date,
            Some(9) => Self::Timestamp(1_000),
            Some(10) => Self::Timestamp(1_000_000),
            Some(11..=14) => Self::Unsigned,
            _ => Self::None,
        }
    }
}

/// A value as a text. Bytes that are no text are shown in hexadecimal digits.
pub(super) fn format(kind: Kind, annotation: Annotation, bytes: &[u8]) -> String {
    let text = match kind {
        Kind::Boolean => return (bytes == [1]).to_string(),
        Kind::Float => bytes.try_into().ok().map(|bytes| format!("{:?}", f32::from_le_bytes(bytes))),
        Kind::Double => bytes.try_into().ok().map(|bytes| format!("{:?}", f64::from_le_bytes(bytes))),
        Kind::Int32 => bytes.try_into().ok().map(|bytes| match annotation {
            Annotation::Unsigned => u32::from_le_bytes(bytes).to_string(),
            _ => integer(i64::from(i32::from_le_bytes(bytes)), annotation),
        }),
        Kind::Int64 => bytes.try_into().ok().map(|bytes| match annotation {
            Annotation::Unsigned => u64::from_le_bytes(bytes).to_string(),
            _ => integer(i64::from_le_bytes(bytes), annotation),
        }),
        Kind::Int96 => bytes.split_first_chunk::<8>().and_then(|(nanoseconds, day)| {
            let day = i64::from(u32::from_le_bytes(day.try_into().ok()?)) - JULIAN_EPOCH;
            let seconds = day * DAY_SECONDS + i64::from_le_bytes(*nanoseconds) / 1_000_000_000;
            Some(timestamp(seconds, i64::from_le_bytes(*nanoseconds).rem_euclid(1_000_000_000), 9))
        }),
        Kind::Bytes | Kind::Fixed(_) => match annotation {
            Annotation::Decimal(scale) => big_endian(bytes).map(|number| decimal(number, scale)),
            Annotation::Text => Some(String::from_utf8_lossy(bytes).into_owned()),
            _ => std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0')).map(str::to_owned),
        },
    };
    text.unwrap_or_else(|| format!("0x{}", slipway_core::hex::encode(bytes)))
}

fn integer(number: i64, annotation: Annotation) -> String {
    match annotation {
        Annotation::Decimal(scale) => decimal(i128::from(number), scale),
        Annotation::Date => date(number),
        Annotation::Timestamp(units) => {
            timestamp(number.div_euclid(units), number.rem_euclid(units), units.ilog10() as usize)
        }
        _ => number.to_string(),
    }
}

/// A signed number of at most 16 bytes, the highest first.
fn big_endian(bytes: &[u8]) -> Option<i128> {
    let mut all = [if bytes.first()? & 0x80 == 0 { 0 } else { 0xff }; 16];
    all[16_usize.checked_sub(bytes.len())?..].copy_from_slice(bytes);
    Some(i128::from_be_bytes(all))
}

fn decimal(number: i128, scale: u32) -> String {
    let scale = scale as usize;
    let digits = format!("{:0>width$}", number.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let sign = if number < 0 { "-" } else { "" };
    if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}

/// A day, counted from 1970, in the Gregorian calendar (the algorithm of Howard Hinnant, <https://howardhinnant.github.io/date_algorithms.html>).
fn date(day: i64) -> String {
    let shifted = day.saturating_add(719_468);
    let (era, in_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_in_era = (in_era - in_era / 1_460 + in_era / 36_524 - in_era / 146_096) / 365;
    let in_year = in_era - (365 * year_in_era + year_in_era / 4 - year_in_era / 100);
    let month = (5 * in_year + 2) / 153;
    let day = in_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_in_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// A time, counted in seconds from 1970 and `fraction`, which has `digits` digits. Zeros at its end are left out.
fn timestamp(seconds: i64, fraction: i64, digits: usize) -> String {
    let (day, second) = (seconds.div_euclid(DAY_SECONDS), seconds.rem_euclid(DAY_SECONDS));
    let time = format!("{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60);
    let fraction = format!("{fraction:0digits$}");
    match fraction.trim_end_matches('0') {
        "" => format!("{} {time}", date(day)),
        fraction => format!("{} {time}.{fraction}", date(day)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_get_the_meaning_of_their_annotation() {
        let int64 = |number: i64, annotation| format(Kind::Int64, annotation, &number.to_le_bytes());
        assert_eq!(int64(-5, Annotation::None), "-5");
        assert_eq!(int64(-1, Annotation::Unsigned), u64::MAX.to_string());
        assert_eq!(int64(-12_345, Annotation::Decimal(2)), "-123.45");
        assert_eq!(int64(5, Annotation::Decimal(3)), "0.005");
        assert_eq!(int64(19_782, Annotation::Date), "2024-02-29");
        assert_eq!(int64(-1, Annotation::Date), "1969-12-31");
        assert_eq!(int64(1_709_208_000_500, Annotation::Timestamp(1_000)), "2024-02-29 12:00:00.5");
        assert_eq!(int64(-1, Annotation::Timestamp(1_000_000)), "1969-12-31 23:59:59.999999");
        assert!(int64(i64::MIN, Annotation::Date).len() > 10);
        assert_eq!(format(Kind::Fixed(2), Annotation::Decimal(1), &[0xff, 0xfe]), "-0.2");
        let mut old = 3_600_000_000_000_i64.to_le_bytes().to_vec();
        old.extend_from_slice(&2_440_589_u32.to_le_bytes());
        assert_eq!(format(Kind::Int96, Annotation::None, &old), "1970-01-02 01:00:00");
    }

    #[test]
    fn bytes_are_texts_or_digits() {
        assert_eq!(format(Kind::Bytes, Annotation::None, "ü".as_bytes()), "ü");
        assert_eq!(format(Kind::Bytes, Annotation::None, &[0xff, 0]), "0xff00");
        assert_eq!(format(Kind::Boolean, Annotation::None, &[1]), "true");
        assert_eq!(format(Kind::Double, Annotation::None, &0.1_f64.to_le_bytes()), "0.1");
    }
}
