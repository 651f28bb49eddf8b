//! Page tokens in MLflow's format: the Base64 encoding of `{"offset": N}`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::Error;

/// The token for the page that starts at `offset`.
pub(crate) fn encode(offset: i64) -> String {
    STANDARD.encode(format!("{{\"offset\": {offset}}}"))
}

/// The offset in a token; 0 without a token.
pub(crate) fn decode(token: Option<&str>) -> Result<i64, Error> {
    let Some(token) = token.filter(|t| !t.is_empty()) else { return Ok(0) };
    // Python's decoder ignores characters outside of the Base64 alphabet.
    let clean: String = token.chars().filter(|c| c.is_ascii_alphanumeric() || "+/=".contains(*c)).collect();
    let bytes = STANDARD.decode(clean).map_err(|_| Error::invalid("Invalid page token, could not base64-decode"))?;
    let parsed: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
    parsed
        .as_ref()
        .and_then(|v| v.get("offset")?.as_i64())
        .filter(|n| *n >= 0)
        .ok_or_else(|| Error::invalid(format!("Invalid page token, decoded value=b'{}'", bytes.escape_ascii())))
}

/// Builds a page from items that were queried with a limit of `max_results + 1`. The extra item only shows that there is another page.
pub(crate) fn page<T>(mut items: Vec<T>, offset: i64, max_results: i64) -> crate::model::Page<T> {
    let limit = usize::try_from(max_results).unwrap_or(usize::MAX);
    let has_more = items.len() > limit;
    items.truncate(limit);
    crate::model::Page { items, next_page_token: has_more.then(|| encode(offset + max_results)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_invalid_ones_are_rejected() {
        assert_eq!(decode(Some(&encode(100))).unwrap(), 100);
        assert_eq!(decode(None).unwrap(), 0);
        assert!(decode(Some("???")).is_err());
        assert!(decode(Some("e30=")).is_err());
    }
}
