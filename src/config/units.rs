//! Durations as people write them: `30s`, `1h30m`, `24h`.

use std::time::Duration;

/// Why a text is not a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not numbers, each followed by a unit.
    #[error("a duration is whole numbers with units: ms, s, m, h, d (30s, 1h30m, 24h)")]
    Form,
    /// More than 64 bits of milliseconds can count.
    #[error("the duration is too long")]
    TooLong,
}

/// Units and their milliseconds. `ms` stands before `m`, so that the longer name is tried first.
const UNITS_MS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Reads whole numbers with units, largest or smallest first, without blanks: `1h30m`. A bare `0` is zero;
/// any other bare number has no unit and is refused.
///
/// # Errors
/// [`DurationError`] says what is wrong with the text.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total_ms: u64 = 0;
    let mut rest = text;
    loop {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        if number.is_empty() {
            return Err(DurationError::Form);
        }
        let (unit, unit_ms) =
            UNITS_MS.iter().find(|(unit, _)| after.starts_with(unit)).ok_or(DurationError::Form)?;
        let part_ms = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(*unit_ms))
            .ok_or(DurationError::TooLong)?;
        total_ms = total_ms.checked_add(part_ms).ok_or(DurationError::TooLong)?;
        rest = after.split_at(unit.len()).1;
        if rest.is_empty() {
            return Ok(Duration::from_millis(total_ms));
        }
    }
}

/// Writes a duration so that [`parse_duration`] reads it back: `1h30m`, `0s`. Parts below a millisecond are cut.
pub fn show_duration(duration: Duration) -> String {
    let mut rest_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, unit_ms) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
        // A day is written as 24h: that is how the limits that are about a day are known.
        if unit == "d" && rest_ms < 2 * unit_ms {
            continue;
        }
        if rest_ms >= unit_ms {
            text += &format!("{}{unit}", rest_ms / unit_ms);
            rest_ms %= unit_ms;
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, ms) in [
            ("0", 0),
            ("0s", 0),
            ("250ms", 250),
            ("30s", 30_000),
            ("2m", 120_000),
            ("1h30m", 5_400_000),
            ("24h", 86_400_000),
            ("14d", 14 * 86_400_000),
            ("1m1ms", 60_001),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_unclear() {
        for text in
            ["", "30", "s", "30 s", "-1s", "1.5h", "1h 30m", "30sec", "1hh", "h1", "30S", " 30s", "0 s"]
        {
            assert_eq!(parse_duration(text), Err(DurationError::Form), "{text:?}");
        }
        for text in ["99999999999999999999s", "18446744073709551615s", "18446744073709551615ms1ms"] {
            assert_eq!(parse_duration(text), Err(DurationError::TooLong), "{text:?}");
        }
    }

    #[test]
    fn writes_the_usual_form() {
        for text in ["0s", "30s", "2m", "1h30m", "24h", "2d", "250ms"] {
            assert_eq!(show_duration(parse_duration(text).unwrap()), text);
        }
    }

    proptest! {
        #[test]
        fn comes_back(ms in any::<u64>()) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&show_duration(duration)), Ok(duration));
        }
    }
}
