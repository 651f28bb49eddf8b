//! Formats times with the layouts of Go's package `time`, in which the reference time `Mon Jan 2 15:04:05 MST 2006` shows the form.

use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// Elements of a layout with what stands for them, longer ones before their prefixes.
const ELEMENTS: &[(&str, &str)] = &[
    ("2006", "%Y"),
    ("January", "%B"),
    ("Jan", "%b"),
    ("Monday", "%A"),
    ("Mon", "%a"),
    ("MST", "UTC"),
    ("Z07:00", "Z"),
    ("Z0700", "Z"),
    ("Z07", "Z"),
    ("-07:00", "+00:00"),
    ("-0700", "+0000"),
    ("-07", "+00"),
    ("002", "%j"),
    ("01", "%m"),
    ("02", "%d"),
    ("03", "%I"),
    ("04", "%M"),
    ("05", "%S"),
    ("06", "%y"),
    ("15", "%H"),
    ("PM", "%p"),
    ("pm", "%P"),
    ("_2", "%e"),
    ("1", "month"),
    ("2", "day"),
    ("3", "hour"),
    ("4", "minute"),
    ("5", "second"),
];

/// Formats a time, in seconds since the Unix epoch, in UTC.
pub(super) fn format(layout: &str, seconds: i64) -> String {
    let time = Timestamp::from_second(seconds).unwrap_or_default().to_zoned(TimeZone::UTC).datetime();
    let mut out = String::new();
    let mut rest = layout;
    while let Some(first) = rest.chars().next() {
        // `_2006` is an underscore and a year. `Jan` and `Mon` in front of a small letter belong to a word.
        let found = ELEMENTS.iter().find(|(element, _)| {
            let Some(after) = rest.strip_prefix(element) else { return false };
            match *element {
                "_2" => !after.starts_with("006"),
                "Jan" | "Mon" => !after.starts_with(|c: char| c.is_ascii_lowercase()),
                _ => true,
            }
        });
        if let Some((element, form)) = found {
            write_element(&mut out, form, time);
            rest = &rest[element.len()..];
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

fn write_element(out: &mut String, form: &str, time: DateTime) {
    let number = match form {
        "month" => time.month(),
        "day" => time.day(),
        "hour" => (time.hour() + 11) % 12 + 1,
        "minute" => time.minute(),
        "second" => time.second(),
        directive if directive.starts_with('%') => {
            // The directives are those of the table, all of which a civil time has.
            let _ = write!(out, "{}", time.strftime(directive));
            return;
        }
        fixed => return out.push_str(fixed),
    };
    let _ = write!(out, "{number}");
}

#[cfg(test)]
mod tests {
    use super::format;

    #[test]
    fn layouts_of_go_are_followed() {
        // 2006-01-02 15:04:05 is Go's reference time itself, so that every layout gives itself.
        let reference = 1_136_214_245;
        for layout in [
            "20060102150405",
            "2006-01-02T15:04:05",
            "Mon Jan 02 15:04:05 2006",
            "Monday, 02-Jan-06",
            "3:04PM",
            "1/2/06 pm",
            "002",
        ] {
            assert_eq!(format(layout, reference), layout);
        }
        assert_eq!(format("2006-01-02T15:04:05Z07:00 MST -0700", 0), "1970-01-01T00:00:00Z UTC +0000");
        assert_eq!(format("Jan _2", 0), "Jan  1");
        assert_eq!(format("3PM 1/2 _2006 Month Janus", 13 * 3600), "1PM 1/1 _1970 Month Janus");
    }
}
