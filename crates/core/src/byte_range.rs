//! The `Range` header of downloads that continue where they broke off.

/// No byte of the range is inside of the object (status 416).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsatisfiable;

/// Parses a single range (RFC 9110, section 14.1.2) as `from..to`. `Err` when it is outside of the object, `None` when it is malformed or
/// not supported; the header is then ignored.
pub fn parse(text: &str, size: u64) -> Option<Result<(u64, u64), Unsatisfiable>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let range = if first.is_empty() {
        let suffix: u64 = last.parse().ok()?;
        (size.saturating_sub(suffix), size)
    } else {
        let from: u64 = first.parse().ok()?;
        let to = if last.is_empty() { size } else { last.parse::<u64>().ok()?.saturating_add(1).min(size) };
        (from, to)
    };
    Some(if range.0 < range.1 { Ok(range) } else { Err(Unsatisfiable) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_parsed() {
        assert_eq!(parse("bytes=0-4", 10), Some(Ok((0, 5))));
        assert_eq!(parse("bytes=-3", 10), Some(Ok((7, 10))));
        assert_eq!(parse("bytes=8-", 10), Some(Ok((8, 10))));
        assert_eq!(parse("bytes=10-", 10), Some(Err(Unsatisfiable)));
        assert_eq!(parse("lines=1-2", 10), None);
    }
}
