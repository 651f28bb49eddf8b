//! Macros in parameters: `[[ScheduledTime]]`, `[[CurrentTime]]`, both also with a layout of Go, as in `[[ScheduledTime.2006-01-02]]`,
//! `[[Index]]`, `[[RunUUID]]`, and `{{$.scheduledTime.strftime('%Y')}}`.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value};

use super::go_time;

/// What the macros of a run stand for.
#[derive(Debug, Clone)]
pub struct Macros {
    /// Id of the run.
    pub run_id: String,
    /// Now, in seconds since the Unix epoch.
    pub now: i64,
    /// The slot of the run and the number of the run from 1, if a recurring run starts it. Without it, `[[ScheduledTime]]` and `[[Index]]`
    /// stand for themselves.
    pub slot: Option<(i64, i64)>,
}

impl Macros {
    /// Replaces the macros in all texts of the parameters.
    #[must_use]
    pub fn in_parameters(&self, parameters: Map<String, Value>) -> Map<String, Value> {
        parameters.into_iter().map(|(name, value)| (name, self.in_value(value))).collect()
    }

    fn in_value(&self, value: Value) -> Value {
        match value {
            Value::String(text) if text.contains("[[") || text.contains("{{$.") => Value::String(self.in_text(&text)),
            Value::Array(items) => items.into_iter().map(|item| self.in_value(item)).collect(),
            Value::Object(fields) => Value::Object(self.in_parameters(fields)),
            other => other,
        }
    }

    /// Replaces the macros in a text, in one pass.
    fn in_text(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((at, open, close)) = next_macro(rest) {
            out.push_str(&rest[..at]);
            rest = &rest[at..];
            let Some(end) = rest.find(close) else { break };
            let (name, after) = (&rest[open.len()..end], &rest[end + close.len()..]);
            match self.value(open, name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&rest[..end + close.len()]),
            }
            rest = after;
        }
        out.push_str(rest);
        out
    }

    fn value(&self, open: &str, name: &str) -> Option<String> {
        let slot = self.slot.map(|(slot, _)| slot);
        if open == "{{$." {
            let (time, format) = name.split_once(".strftime('")?;
            let seconds = match time {
                "scheduledTime" => slot?,
                "currentTime" => self.now,
                _ => return None,
            };
            let time = Timestamp::from_second(seconds).ok()?.to_zoned(TimeZone::UTC);
            return jiff::fmt::strtime::format(format.strip_suffix("')")?, &time).ok();
        }
        let (kind, layout) = name.split_once('.').unwrap_or((name, "20060102150405"));
        match kind {
            "RunUUID" => Some(self.run_id.clone()),
            "ScheduledTime" => Some(go_time::format(layout, slot?)),
            "CurrentTime" => Some(go_time::format(layout, self.now)),
            "Index" => self.slot.map(|(_, index)| index.to_string()),
            _ => None,
        }
    }
}

/// Where the next macro may begin, and the brackets around it.
fn next_macro(text: &str) -> Option<(usize, &'static str, &'static str)> {
    let square = text.find("[[").map(|at| (at, "[[", "]]"));
    let curly = text.find("{{$.").map(|at| (at, "{{$.", "}}"));
    [square, curly].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn macros_are_replaced_in_all_texts() {
        let macros = Macros { run_id: "r-1".into(), now: 26, slot: Some((25, 27)) };
        let given = json!({
            "a": "FOO [[ScheduledTime]] [[RunUUID]] [[CurrentTime]] [[Index]]",
            "b": ["[[ScheduledTime.15-04-05]]", {"c": "{{$.scheduledTime.strftime('%Y/%m')}}"}],
            "d": "[[Unknown]] [[ {{$.inputs.parameters['x']}} ]] [[Index",
            "e": 1,
        });
        let Value::Object(given) = given else { unreachable!() };
        assert_eq!(
            Value::Object(macros.in_parameters(given)),
            json!({
                "a": "FOO 19700101000025 r-1 19700101000026 27",
                "b": ["00-00-25", {"c": "1970/01"}],
                "d": "[[Unknown]] [[ {{$.inputs.parameters['x']}} ]] [[Index",
                "e": 1,
            })
        );
    }

    #[test]
    fn a_run_started_by_hand_has_no_slot() {
        let macros = Macros { run_id: "r".into(), now: 0, slot: None };
        assert_eq!(
            macros.in_text("[[ScheduledTime]] [[Index]] [[CurrentTime]]"),
            "[[ScheduledTime]] [[Index]] 19700101000000"
        );
    }
}
