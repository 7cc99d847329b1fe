//! Durations, sizes and times as people write them. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::types::Millis;

/// Longest duration accepted, in seconds: ten thousand years. Litestream files say `9999999h` for "for ever";
/// beyond this the sum with a time leaves the calendar.
const MAX_DURATION_SECONDS: u64 = 10_000 * 366 * 86_400;

/// Longest piece of input that an error repeats, in characters: an error stays one line.
const MAX_QUOTED_CHARS: usize = 60;

/// Why a duration, size or time was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a duration.
    #[error("`{0}` is not a duration (write 500ms, 1s, 5m, 1h, 30d, 2w or 1h30m)")]
    Duration(String),
    /// A duration beyond ten thousand years.
    #[error("`{0}` is longer than ten thousand years")]
    DurationTooLong(String),
    /// Not a size.
    #[error("`{0}` is not a size (write 123, 64KiB, 64MiB or 10GB)")]
    Size(String),
    /// A size beyond 2^64 bytes.
    #[error("`{0}` is more than a 64-bit number of bytes")]
    SizeTooLarge(String),
    /// Not a time.
    #[error(
        "`{0}` is not a time (write 2026-11-20T10:30:00Z, 2026-11-20T10:30, or 10m for ten minutes ago)"
    )]
    Time(String),
    /// A local time that a clock change skips or repeats.
    #[error(
        "`{0}` does not happen exactly once in {1}: a clock change skips or repeats it (write it with an offset, as 2026-11-20T10:30:00Z)"
    )]
    AmbiguousTime(String, String),
}

fn quoted(text: &str) -> String {
    text.chars().take(MAX_QUOTED_CHARS).collect()
}

/// A duration: `500ms`, `1s`, `5m`, `1h`, `30d`, `2w`, several in a row as Go writes them (`1h30m`, `24h0m0s`),
/// with decimals (`1.5h`). A day is 24 hours. A plain `0` needs no unit.
///
/// # Errors
/// [`UnitError::Duration`] or [`UnitError::DurationTooLong`].
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let bad = || UnitError::Duration(quoted(text));
    let too_long = || UnitError::DurationTooLong(quoted(text));
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(bad());
    }
    let mut total_nanos: u128 = 0;
    while !rest.is_empty() {
        let number_len = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(bad)?;
        let (number, tail) = rest.split_at(number_len);
        let unit_len = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let unit_nanos = duration_unit_nanos(unit).ok_or_else(bad)?;
        let nanos = scaled(number, unit_nanos).map_err(|e| {
            if e == Scale::TooLarge {
                too_long()
            } else {
                bad()
            }
        })?;
        total_nanos = total_nanos.checked_add(nanos).ok_or_else(too_long)?;
        rest = tail;
    }
    let seconds = u64::try_from(total_nanos / 1_000_000_000).map_err(|_| too_long())?;
    if seconds > MAX_DURATION_SECONDS {
        return Err(too_long());
    }
    let nanos = u32::try_from(total_nanos % 1_000_000_000).map_err(|_| too_long())?;
    Ok(Duration::new(seconds, nanos))
}

fn duration_unit_nanos(unit: &str) -> Option<u128> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60 * 1_000_000_000,
        "h" => 3_600 * 1_000_000_000,
        "d" => 86_400 * 1_000_000_000,
        "w" => 7 * 86_400 * 1_000_000_000,
        _ => return None,
    })
}

#[derive(PartialEq, Eq)]
enum Scale {
    NotANumber,
    TooLarge,
}

/// `number` (decimal digits, at most one point) times `unit`, rounded down.
fn scaled(number: &str, unit: u128) -> Result<u128, Scale> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.len() + fraction.len() == 0 || !digits(whole) || !digits(fraction) {
        return Err(Scale::NotANumber);
    }
    // Only digits are left, so a number that does not parse is one that does not fit.
    let whole: u128 = if whole.is_empty() {
        0
    } else {
        whole.parse().map_err(|_| Scale::TooLarge)?
    };
    // 18 digits: below a billionth of any unit here, and their product with the largest unit (a week in nanoseconds,
    // below 2^50) stays below 2^110.
    let (mut numerator, mut denominator) = (0_u128, 1_u128);
    for digit in fraction.bytes().take(18) {
        numerator = numerator * 10 + u128::from(digit - b'0');
        denominator *= 10;
    }
    let whole = whole.checked_mul(unit).ok_or(Scale::TooLarge)?;
    whole
        .checked_add(numerator * unit / denominator)
        .ok_or(Scale::TooLarge)
}

/// The shortest text that [`parse_duration`] reads back to exactly `duration`: `7d`, `36h`, `90s`, `500ms`.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let nanos = duration.subsec_nanos();
    if nanos == 0 {
        for (unit, length) in [("d", 86_400), ("h", 3_600), ("m", 60)] {
            if seconds != 0 && seconds.is_multiple_of(length) {
                return format!("{}{unit}", seconds / length);
            }
        }
        return format!("{seconds}s");
    }
    let mut text = String::new();
    if seconds != 0 {
        let _ = write!(text, "{seconds}s");
    }
    let _ = if nanos.is_multiple_of(1_000_000) {
        write!(text, "{}ms", nanos / 1_000_000)
    } else {
        write!(text, "{nanos}ns")
    };
    text
}

/// A size in bytes: `123`, `64KiB`, `64MiB`, `10GB`, `1.5GiB`. `K`, `M`, `G`, `T` with `iB` count by 1024, with `B`
/// or alone by 1000; letters in either case.
///
/// # Errors
/// [`UnitError::Size`] or [`UnitError::SizeTooLarge`].
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let bad = || UnitError::Size(quoted(text));
    let too_large = || UnitError::SizeTooLarge(quoted(text));
    let trimmed = text.trim();
    let number_len = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(number_len);
    let unit: u128 = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(bad()),
    };
    let bytes = scaled(number, unit).map_err(|e| {
        if e == Scale::TooLarge {
            too_large()
        } else {
            bad()
        }
    })?;
    u64::try_from(bytes).map_err(|_| too_large())
}

/// A moment: RFC 3339 (`2026-11-20T10:30:00Z`, `...+01:00`), a local time in `zone` (`2026-11-20T10:30`, with or
/// without seconds, a space instead of the `T` allowed), `now`, or a duration meaning that long before `now`
/// (`10m`, `10m ago`). Fractions of a millisecond are cut off.
///
/// # Errors
/// [`UnitError::Time`], or [`UnitError::AmbiguousTime`] where a clock change skips or repeats a local time: picking
/// one of two moments silently could restore the wrong hour.
pub fn parse_time(text: &str, now: Timestamp, zone: &TimeZone) -> Result<Millis, UnitError> {
    let bad = || UnitError::Time(quoted(text));
    let trimmed = text.trim();
    if trimmed == "now" {
        return Ok(Millis(now.as_millisecond()));
    }
    let relative = trimmed.strip_suffix("ago").map_or(trimmed, str::trim_end);
    if let Ok(before) = parse_duration(relative) {
        let before = jiff::SignedDuration::try_from(before).map_err(|_| bad())?;
        let then = now.checked_sub(before).map_err(|_| bad())?;
        return Ok(Millis(then.as_millisecond()));
    }
    // Minutes must be there: a bare date would silently mean midnight.
    if !trimmed.contains(':') {
        return Err(bad());
    }
    if let Ok(then) = trimmed.parse::<Timestamp>() {
        return Ok(Millis(then.as_millisecond()));
    }
    let local: DateTime = trimmed.parse().map_err(|_| bad())?;
    let then = zone
        .to_ambiguous_timestamp(local)
        .unambiguous()
        .map_err(|_| {
            let name = zone.iana_name().unwrap_or("the configured time-zone");
            UnitError::AmbiguousTime(quoted(text), name.to_owned())
        })?;
    Ok(Millis(then.as_millisecond()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn secs(text: &str) -> u64 {
        parse_duration(text)
            .unwrap_or_else(|e| panic!("{e}"))
            .as_secs()
    }

    #[test]
    fn durations_as_people_and_go_write_them() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("10µs"), Ok(Duration::from_micros(10)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        for (text, seconds) in [
            ("1s", 1),
            ("60s", 60),
            ("5m", 300),
            ("1h", 3_600),
            ("720h", 30 * 86_400),
            ("1h30m", 5_400),
            ("24h0m0s", 86_400),
            ("30d", 30 * 86_400),
            ("2w", 14 * 86_400),
            (" 1d12h ", 129_600),
            ("9999999h", 9_999_999 * 3_600),
        ] {
            assert_eq!(secs(text), seconds, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_duration_is_refused() {
        for text in [
            "", " ", "5", "h", "1x", "-1s", "1 s", "1..5s", ".s", "1h30", "1hs", "s1", "∞s",
        ] {
            assert_eq!(
                parse_duration(text),
                Err(UnitError::Duration(text.into())),
                "{text}"
            );
        }
        for text in [
            "99999999999999999999w",
            "3700000d",
            &format!("{}s", "9".repeat(40)),
        ] {
            assert!(
                matches!(parse_duration(text), Err(UnitError::DurationTooLong(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("123", 123),
            ("0", 0),
            ("64KiB", 65_536),
            ("64MiB", 64 << 20),
            ("10GB", 10_000_000_000),
            ("1.5GiB", 3 << 29),
            ("1 tb", 1_000_000_000_000),
            ("7B", 7),
            ("2m", 2_000_000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "-1", "1PB!", "1.2.3", "ten"] {
            assert_eq!(
                parse_size(text),
                Err(UnitError::Size(text.into())),
                "{text}"
            );
        }
        assert!(matches!(
            parse_size("99999999TiB"),
            Err(UnitError::SizeTooLarge(_))
        ));
    }

    #[test]
    fn times_absolute_local_and_relative() {
        let now: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        for (text, zone, expected) in [
            ("2026-11-20T10:30:00Z", &berlin, "2026-11-20T10:30:00Z"),
            (
                "2026-11-20T10:30:00.123456+02:00",
                &berlin,
                "2026-11-20T08:30:00.123Z",
            ),
            ("2026-11-20T10:30", &berlin, "2026-11-20T09:30:00Z"),
            ("2026-11-20 10:30", &berlin, "2026-11-20T09:30:00Z"),
            ("2026-07-20 10:30:15", &berlin, "2026-07-20T08:30:15Z"),
            (
                "2026-11-20T10:30:15",
                &TimeZone::UTC,
                "2026-11-20T10:30:15Z",
            ),
            ("10m", &berlin, "2026-11-20T11:50:00Z"),
            ("10m ago", &berlin, "2026-11-20T11:50:00Z"),
            ("1d12h", &berlin, "2026-11-19T00:00:00Z"),
            ("now", &berlin, "2026-11-20T12:00:00Z"),
        ] {
            let expected: Timestamp = expected.parse().unwrap();
            assert_eq!(
                parse_time(text, now, zone),
                Ok(Millis(expected.as_millisecond())),
                "{text}"
            );
        }
        for text in [
            "",
            "yesterday",
            "2026-11-20",
            "2026-13-20T10:30",
            "ago",
            "10",
            "9999w99999999w",
        ] {
            assert!(parse_time(text, now, &berlin).is_err(), "{text}");
        }
    }

    #[test]
    fn a_local_time_that_a_clock_change_skips_or_repeats_is_refused() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        for text in ["2026-10-25T02:30", "2026-03-29T02:30"] {
            let result = parse_time(text, Timestamp::UNIX_EPOCH, &berlin);
            assert_eq!(
                result,
                Err(UnitError::AmbiguousTime(
                    text.into(),
                    "Europe/Berlin".into()
                ))
            );
        }
    }

    proptest! {
        #[test]
        fn parsers_never_panic(text in "\\PC*") {
            let _ = parse_duration(&text);
            let _ = parse_size(&text);
            let _ = parse_time(&text, Timestamp::MAX, &TimeZone::UTC);
        }

        #[test]
        fn near_misses_never_panic(text in "[0-9.]{0,40}(ns|us|µs|ms|s|m|h|d|w|KiB|GB|T|:|-){0,3}[0-9.]{0,4}[a-zµ]{0,2}") {
            let _ = parse_duration(&text);
            let _ = parse_size(&text);
            let _ = parse_time(&text, Timestamp::MIN, &TimeZone::UTC);
        }

        #[test]
        fn durations_read_back(seconds in 0..MAX_DURATION_SECONDS, nanos in 0u32..1_000_000_000) {
            let duration = Duration::new(seconds, nanos);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
    }
}
