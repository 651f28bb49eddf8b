//! The elements of a tensor in JSON: a list of numbers, booleans or strings, flat or nested like the shape.
//!
//! Elements are read from the text of their number, not through a floating-point number, so that integers are exact. Invariant: an
//! element that its type cannot represent is an error, never a rounded integer or an infinity. `null` is NaN, which JSON cannot represent.

use std::borrow::Cow;

use half::{bf16, f16};

use super::Data;

/// Maximum nesting depth of JSON data.
const MAX_DEPTH: usize = 32;
/// Maximum length of an element in an error message, in bytes.
const MAX_SHOWN: usize = 40;

/// An element type that can be read from a JSON value. Each method returns `None` if the value is not valid for the type.
pub(super) trait Element: Sized {
    fn from_number(_: &str) -> Option<Self> {
        None
    }
    fn from_bool(_: bool) -> Option<Self> {
        None
    }
    fn from_string(_: Cow<'_, str>) -> Option<Self> {
        None
    }
    fn from_null() -> Option<Self> {
        None
    }
}

/// The value of a JSON number if it is an integer, such as `3`, `3.0` or `30e-1`. `None` also for integers of more than 128 bits.
fn exact_integer(text: &str) -> Option<i128> {
    // Almost all integers are written plainly.
    if text.len() <= 18
        && let Ok(plain) = text.parse::<i64>()
    {
        return Some(plain.into());
    }
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let fraction = fraction.trim_end_matches('0');
    let mut value = 0_i128;
    for digit in whole.bytes().chain(fraction.bytes()) {
        value = value.checked_mul(10)?.checked_add(i128::from(digit.checked_sub(b'0').filter(|d| *d < 10)?))?;
    }
    // Powers of ten beyond 38 do not fit into 128 bits.
    let exponent = exponent.strip_prefix('+').unwrap_or(exponent).parse::<i64>().ok()?;
    let shift = exponent.checked_sub(i64::try_from(fraction.len()).ok()?)?;
    if value != 0 {
        let power = 10_i128.checked_pow(u32::try_from(shift.unsigned_abs()).ok()?)?;
        value = if shift >= 0 {
            value.checked_mul(power)?
        } else if value % power == 0 {
            value / power
        } else {
            return None;
        };
    }
    Some(if negative { -value } else { value })
}

macro_rules! integer_element {
    ($($t:ty),*) => { $(impl Element for $t {
        // Clients in languages without an integer type send `3.0` for 3.
        fn from_number(text: &str) -> Option<Self> { exact_integer(text)?.try_into().ok() }
        fn from_bool(value: bool) -> Option<Self> { Some(Self::from(value)) }
    })* };
}
integer_element!(u8, u16, u32, u64, i8, i16, i32, i64);

macro_rules! float_element {
    ($($t:ty => $parse:expr),*) => { $(impl Element for $t {
        fn from_number(text: &str) -> Option<Self> {
            let parse: fn(&str) -> Option<Self> = $parse;
            // A JSON number is finite, so an infinity is a number that does not fit.
            parse(text).filter(|value| value.is_finite())
        }
        fn from_null() -> Option<Self> { Some(Self::NAN) }
    })* };
}
float_element!(
    f32 => |text| text.parse().ok(),
    f64 => |text| text.parse().ok(),
    f16 => |text| text.parse().ok().map(f16::from_f64),
    bf16 => |text| text.parse().ok().map(bf16::from_f64)
);

impl Element for bool {
    fn from_bool(value: bool) -> Option<Self> {
        Some(value)
    }
    fn from_number(text: &str) -> Option<Self> {
        match exact_integer(text)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl Element for Vec<u8> {
    fn from_string(value: Cow<'_, str>) -> Option<Self> {
        Some(value.into_owned().into_bytes())
    }
}

/// Reads all elements of a list into `items`. The text should be valid JSON; if it is not, the result is an error or the elements that
/// precede the fault.
///
/// # Errors
/// A human-readable reason that names the invalid element.
pub(super) fn read_elements<T: Element>(text: &str, items: &mut Vec<T>) -> Result<(), String> {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (0, 0);
    while let Some(byte) = bytes.get(at) {
        let start = at;
        let item = match byte {
            b' ' | b'\t' | b'\n' | b'\r' | b',' => {
                at += 1;
                continue;
            }
            b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err("lists are nested too deeply".into());
                }
                at += 1;
                continue;
            }
            b']' if depth > 0 => {
                depth -= 1;
                at += 1;
                continue;
            }
            _ if depth == 0 => return Err(format!("expected a list, found {}", shown(&text[start..]))),
            b'"' => {
                let (end, escaped) = end_of_string(bytes, at + 1).ok_or("a string does not end")?;
                at = end;
                let string = if escaped {
                    serde_json::from_str::<String>(&text[start..end]).map(Cow::Owned).map_err(|e| e.to_string())?
                } else {
                    Cow::Borrowed(&text[start + 1..end - 1])
                };
                T::from_string(string)
            }
            b'-' | b'0'..=b'9' => {
                let is_part = |b: &u8| matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-');
                at += bytes[at..].iter().take_while(|b| is_part(b)).count();
                T::from_number(&text[start..at])
            }
            b'a'..=b'z' => {
                at += bytes[at..].iter().take_while(|b| b.is_ascii_lowercase()).count();
                match &text[start..at] {
                    "true" => T::from_bool(true),
                    "false" => T::from_bool(false),
                    "null" => T::from_null(),
                    _ => None,
                }
            }
            _ => return Err(format!("element {} is not a number, a boolean or a string", items.len())),
        };
        match item {
            Some(item) => items.push(item),
            None => return Err(format!("element {} is {}", items.len(), shown(&text[start..at]))),
        }
    }
    if depth == 0 { Ok(()) } else { Err("a list does not end".into()) }
}

/// The beginning of a text, for an error message.
fn shown(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_SHOWN)]
}

/// The position after the closing quote of the string whose content begins at `at`, and whether the string has escapes.
fn end_of_string(bytes: &[u8], mut at: usize) -> Option<(usize, bool)> {
    let mut escaped = false;
    loop {
        match bytes.get(at)? {
            b'"' => return Some((at + 1, escaped)),
            b'\\' => {
                escaped = true;
                at += 2;
            }
            _ => at += 1,
        }
    }
}

/// Appends the elements as a flat JSON list. NaN and infinities become `null`, because JSON cannot represent them.
///
/// # Errors
/// The index of a string that is not UTF-8, which JSON cannot represent either.
pub(super) fn write(data: &Data, out: &mut Vec<u8>) -> Result<(), usize> {
    fn list<T>(items: &[T], out: &mut Vec<u8>, mut write_item: impl FnMut(&T, &mut Vec<u8>)) {
        out.push(b'[');
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            write_item(item, out);
        }
        out.push(b']');
    }
    fn plain<T: serde::Serialize>(item: &T, out: &mut Vec<u8>) {
        let _ = serde_json::to_writer(out, item); // writing numbers and strings into memory cannot fail
    }
    match data {
        Data::Bool(v) => list(v, out, plain),
        Data::Uint8(v) => list(v, out, plain),
        Data::Uint16(v) => list(v, out, plain),
        Data::Uint32(v) => list(v, out, plain),
        Data::Uint64(v) => list(v, out, plain),
        Data::Int8(v) => list(v, out, plain),
        Data::Int16(v) => list(v, out, plain),
        Data::Int32(v) => list(v, out, plain),
        Data::Int64(v) => list(v, out, plain),
        Data::Fp16(v) => list(v, out, |x, out| plain(&x.to_f32(), out)),
        Data::Bf16(v) => list(v, out, |x, out| plain(&x.to_f32(), out)),
        Data::Fp32(v) => list(v, out, plain),
        Data::Fp64(v) => list(v, out, plain),
        Data::Bytes(v) => {
            let texts = v.iter().enumerate().map(|(i, item)| std::str::from_utf8(item).map_err(|_| i));
            list(&texts.collect::<Result<Vec<_>, _>>()?, out, plain);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DataType;
    use proptest::prelude::*;

    fn parse(json: &str, datatype: DataType) -> Result<Data, String> {
        Data::from_json(json, datatype, "x", 1).map_err(|e| e.to_string())
    }

    #[test]
    fn numbers_that_do_not_fit_are_rejected() {
        use DataType::{Bf16, Bool, Fp16, Fp32, Fp64, Int8, Int64, Uint8, Uint64};
        for (text, datatype) in [
            ("9223372036854775808", Int64),
            ("9223372036854775808.0", Int64),
            ("-9223372036854775809", Int64),
            ("-9223372036854775809.0", Int64),
            ("18446744073709551616", Uint64),
            ("18446744073709551616.0", Uint64),
            ("1e400", Uint64),
            ("1e999999999999999999999", Int64),
            ("0.5", Int64),
            ("1e-1", Int64),
            ("256", Uint8),
            ("-1", Uint8),
            ("-128.5", Int8),
            ("1e39", Fp32),
            ("-3.5e38", Fp32),
            ("70000", Fp16),
            ("65520", Fp16),
            ("1e39", Bf16),
            ("1e309", Fp64),
            ("2", Bool),
            ("null", Int64),
            ("null", Bool),
            ("\"NaN\"", Fp32),
            ("NaN", Fp32),
        ] {
            let error = parse(&format!("[{text}]"), datatype).unwrap_err();
            assert!(error.contains(&format!("data is not {}: element 0 is", datatype.name())), "{text}: {error}");
        }
    }

    #[test]
    fn integers_are_exact_in_every_notation() {
        for (text, value) in [
            ("9223372036854775807", i64::MAX),
            ("9223372036854775807.0", i64::MAX),
            ("9.223372036854775807e18", i64::MAX),
            ("-9223372036854775808.000", i64::MIN),
            ("9007199254740993.0", 9_007_199_254_740_993),
            ("3.0", 3),
            ("-30E-1", -3),
            ("1.5e+3", 1500),
            ("-0.0", 0),
            ("0e99999", 0),
            ("0.000000000000000000000000000000000000000000000000000000", 0),
        ] {
            assert_eq!(parse(&format!("[{text}]"), DataType::Int64), Ok(Data::Int64(vec![value])), "{text}");
        }
        assert_eq!(parse("[18446744073709551615.0]", DataType::Uint64), Ok(Data::Uint64(vec![u64::MAX])));
    }

    #[test]
    fn null_is_nan_in_every_floating_point_type() {
        for datatype in [DataType::Fp16, DataType::Bf16, DataType::Fp32, DataType::Fp64] {
            let mut written = Vec::new();
            let data = Data::from_json("[[1,null]]", datatype, "x", 2).unwrap();
            write(&data, &mut written).unwrap();
            assert_eq!(written, b"[1.0,null]", "{data:?}");
        }
    }

    #[test]
    fn strings_keep_every_character() {
        let parsed = parse(r#"["a\u0000b", "kö\"ln", "\ud83d\ude00", ""]"#, DataType::Bytes);
        assert_eq!(parsed, Ok(Data::Bytes(["a\0b", "kö\"ln", "😀", ""].map(|s| s.as_bytes().to_vec()).into())));
        assert!(parse(r#"["\ud83d"]"#, DataType::Bytes).is_err());
        assert!(write(&Data::Bytes(vec![b"a".to_vec(), vec![0xff]]), &mut Vec::new()).is_err_and(|index| index == 1));
    }

    proptest! {
        #[test]
        fn numbers_round_trip(floats in proptest::collection::vec(any::<f32>(), 1..9), doubles in proptest::collection::vec(any::<f64>(), 1..9), integers in proptest::collection::vec(any::<i64>(), 1..9)) {
            let finite = |v: &f32| v.is_finite();
            for data in [
                Data::Fp32(floats.into_iter().filter(finite).collect()),
                Data::Fp64(doubles.into_iter().filter(|v| v.is_finite()).collect()),
                Data::Int64(integers),
            ] {
                let mut text = Vec::new();
                write(&data, &mut text).unwrap();
                let text = String::from_utf8(text).unwrap();
                prop_assert_eq!(Data::from_json(&text, data.datatype(), "x", data.len()).unwrap(), data);
            }
        }
    }
}
