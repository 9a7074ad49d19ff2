//! Sizes, times and modes, as people write and read them.

use std::time::Duration;

use vdsmstore_core::options::Bandwidth;

/// Bytes: a number, or one with K, M, G or T (powers of 1024).
pub fn parse(text: &str) -> Result<i64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        _ => return Err("a number of bytes is needed, or one with K, M, G or T".to_owned()),
    };
    let number: i64 = digits.parse().map_err(|_| "a number is needed, such as 512 or 10G".to_owned())?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes >= 0).ok_or_else(|| "too large".to_owned())
}

/// Bytes per second, at least 1.
pub fn bandwidth(text: &str) -> Result<Bandwidth, String> {
    match u64::try_from(parse(text)?) {
        Ok(bytes) if bytes > 0 => Ok(Bandwidth(bytes)),
        _ => Err("at least 1 byte per second is needed".to_owned()),
    }
}

/// Seconds, with or without decimals.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "a number of seconds is needed".to_owned())?;
    Duration::try_from_secs_f64(number).map_err(|error| error.to_string())
}

/// Permission bits.
pub fn octal(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| "an octal mode is needed, such as 0750".to_owned())
}

/// Short, for people: `512`, `1.5K`, `40G`.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "K", "M", "G", "T", "P", "E"];
    let mut unit = 0;
    while unit + 1 < UNITS.len() && bytes >> (10 * unit) >= 1024 {
        unit += 1;
    }
    let tenths = (u128::from(bytes) * 10 + (1 << (10 * unit)) / 2) >> (10 * unit);
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole}{}", UNITS[unit]),
        (whole, _) if whole >= 100 => format!("{whole}{}", UNITS[unit]),
        (whole, tenth) => format!("{whole}.{tenth}{}", UNITS[unit]),
    }
}

/// `2026-01-31T12:00:00Z` of seconds since the epoch.
pub fn date(seconds: u64) -> String {
    let (days, second) = (seconds / 86400, seconds % 86400);
    // Days since 0000-03-01, so that leap days come last; eras of 400 years.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed() {
        assert_eq!(parse("512"), Ok(512));
        assert_eq!(parse("10G"), Ok(10 << 30));
        assert_eq!(parse("1k"), Ok(1024));
        assert_eq!(parse("3TiB"), Ok(3 << 40));
        for wrong in ["", "G", "-1", "1.5G", "10X", "9999999999G", "1 G", "é"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn limits_are_parsed() {
        assert_eq!(bandwidth("10M"), Ok(Bandwidth(10 << 20)));
        assert!(bandwidth("0").is_err() && bandwidth("-1").is_err() && bandwidth("fast").is_err());
    }

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0"),
            (512, "512"),
            (1024, "1K"),
            (1536, "1.5K"),
            (40 << 30, "40G"),
            ((40 << 30) + (1 << 29), "40.5G"),
            ((400 << 20) + (1 << 18), "400M"),
            (u64::MAX, "16E"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }

    #[test]
    fn dates_are_right() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(date(1_767_225_599), "2025-12-31T23:59:59Z");
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(octal("0750"), Ok(0o750));
        assert!(octal("888").is_err() && octal("77777").is_err());
    }

    #[test]
    fn seconds_are_checked() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert!(seconds("-1").is_err() && seconds("NaN").is_err() && seconds("x").is_err());
    }
}
