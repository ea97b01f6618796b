//! Numbers as people read them.

use crate::clock::UnixMillis;

/// A whole number, with its thousands apart.
#[must_use]
pub fn count(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut grouped = String::from(if value <= -0.5 { "-" } else { "" });
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A number with the digits that matter: three, and no zeros behind the point.
#[must_use]
pub fn decimal(value: f64) -> String {
    let magnitude = value.abs();
    let digits = match magnitude {
        _ if magnitude >= 100.0 => return count(value),
        _ if magnitude >= 10.0 => 1,
        _ if magnitude >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A time in seconds, in the two largest units that matter.
#[must_use]
pub fn seconds(value: f64) -> String {
    let whole = value.round() as u64;
    let two = |large: u64, large_unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{large} {large_unit}"),
        _ => format!("{large} {large_unit} {small} {small_unit}"),
    };
    match value {
        _ if value <= 0.0 => "0 s".to_owned(),
        _ if value < 0.001 => "< 1 ms".to_owned(),
        _ if value < 0.9995 => format!("{} ms", (value * 1000.0).round()),
        _ if value < 59.5 => format!("{} s", decimal((value * 10.0).round() / 10.0)),
        _ if whole < 3600 => two(whole / 60, "min", whole % 60, "s"),
        _ if whole < 86_400 => two(whole / 3600, "h", whole / 60 % 60, "min"),
        _ => two(whole / 86_400, "d", whole / 3600 % 24, "h"),
    }
}

/// A size in bytes, in the largest unit that it fills.
#[must_use]
pub fn bytes(value: f64) -> String {
    let mut value = value;
    for unit in ["B", "KiB", "MiB"] {
        if value < 1024.0 {
            return format!("{} {unit}", decimal(value));
        }
        value /= 1024.0;
    }
    format!("{} GiB", decimal(value))
}

/// RFC 3339, UTC, in whole seconds.
#[must_use]
pub fn timestamp(at: UnixMillis) -> String {
    jiff::Timestamp::from_second(at.div_euclid(1000)).map_or_else(|_| at.to_string(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_exact_enough() {
        for (value, text) in
            [(0.0, "0"), (999.0, "999"), (1000.0, "1,000"), (1_234_567.0, "1,234,567"), (-5e3, "-5,000")]
        {
            assert_eq!(count(value), text);
        }
        for (value, text) in
            [(0.0, "0"), (0.1234, "0.123"), (1.0, "1"), (9.876, "9.88"), (12.34, "12.3"), (1e4, "10,000")]
        {
            assert_eq!(decimal(value), text);
        }
        for (value, text) in [(0.0, "0 B"), (1536.0, "1.5 KiB"), (67_108_864.0, "64 MiB"), (3e12, "2,794 GiB")] {
            assert_eq!(bytes(value), text);
        }
        assert_eq!(timestamp(1_767_225_600_999), "2026-01-01T00:00:00Z");
        assert_eq!(timestamp(-1), "1969-12-31T23:59:59Z");
    }

    #[test]
    fn times_have_two_units() {
        for (value, text) in [
            (-1.0, "0 s"),
            (0.0, "0 s"),
            (0.0004, "< 1 ms"),
            (0.25, "250 ms"),
            (0.9999, "1 s"),
            (1.26, "1.3 s"),
            (59.4, "59.4 s"),
            (59.6, "1 min"),
            (90.0, "1 min 30 s"),
            (3599.9, "1 h"),
            (7500.0, "2 h 5 min"),
            (90_000.0, "1 d 1 h"),
        ] {
            assert_eq!(seconds(value), text, "{value}");
        }
    }
}
