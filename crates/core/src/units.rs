//! Human-readable bytes and durations.

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
}
