//! Durations as people write them: `9s`, `100ms`, `2m`, `1h30m`.

use std::time::Duration;

const UNITS: [(&str, u64); 4] = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];

/// Parses a duration with a unit; at most 365 days.
pub fn parse(text: &str) -> Result<Duration, String> {
    let complain = || {
        format!(
            "`{text}` is not a duration; write a number and a unit as in `9s`, `100ms`, `2m` or `1h`"
        )
    };
    let mut rest = text;
    let mut total: u64 = 0;
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .ok_or_else(complain)?;
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| complain())?;
        let (unit, factor) = UNITS
            .iter()
            .find(|(unit, _)| tail.starts_with(unit))
            .ok_or_else(complain)?;
        let part = number.checked_mul(*factor).ok_or_else(complain)?;
        total = total.checked_add(part).ok_or_else(complain)?;
        rest = tail.strip_prefix(unit).ok_or_else(complain)?;
    }
    if text.is_empty() {
        return Err(complain());
    }
    if total > 365 * 24 * 3_600_000 {
        return Err(format!("`{text}` is longer than a year"));
    }
    Ok(Duration::from_millis(total))
}

/// The shortest way to write a duration that [`parse`] reads; below a millisecond it is cut off.
pub fn show(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis == 0 {
        return "0s".into();
    }
    if !millis.is_multiple_of(1_000) {
        return format!("{millis}ms");
    }
    let seconds = millis / 1_000;
    let parts = [
        (seconds / 3_600, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
    ];
    parts
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, unit)| format!("{number}{unit}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_and_bad() {
        for (text, millis) in [
            ("9s", 9_000),
            ("100ms", 100),
            ("2m", 120_000),
            ("1h30m", 5_400_000),
            ("0", 0),
            ("0s", 0),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "9",
            "s",
            "9 s",
            "-1s",
            "1.5s",
            "9x",
            "99999999999999999999s",
            "9000h",
            "99999999999999999h",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn reads_what_it_shows(millis in 0u64..365 * 24 * 3_600_000) {
            let duration = Duration::from_millis(millis);
            proptest::prop_assert_eq!(parse(&show(duration)), Ok(duration));
        }
    }
}
