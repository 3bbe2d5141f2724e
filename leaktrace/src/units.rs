//! Durations and sizes as people write and read them.

use std::time::Duration;

/// What stands for a duration where none can be understood.
const DURATIONS: &str = "expected a duration like 90s, 5m or 1h30m";
/// Units of durations and their seconds, the longest first. The second word is how [`seconds`] writes it.
const UNITS: [(&[&str], f64); 5] =
    [(&["d"], 86_400.0), (&["h"], 3_600.0), (&["m", "min"], 60.0), (&["s"], 1.0), (&["ms"], 0.001)];
/// The longest duration that is taken.
const LONGEST: Duration = Duration::from_hours(366 * 24);
/// The shortest time in which anything can be seen.
const SHORTEST: Duration = Duration::from_millis(100);

/// Parses `60`, `1.5`, `90s`, `5m`, `1h30m`, `1d` or `250ms`, and what [`seconds`] writes, like `13 h 29 min`.
///
/// # Errors
/// Says what was expected, for anything else and for more than a year.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    parse_between(text, Duration::ZERO)
}

/// A duration of at least 100 ms: the time it takes to see anything.
///
/// # Errors
/// As [`parse_duration`], and for shorter ones.
pub fn parse_window(text: &str) -> Result<Duration, String> {
    parse_between(text, SHORTEST)
}

fn parse_between(text: &str, least: Duration) -> Result<Duration, String> {
    let total = parts(text).ok_or(DURATIONS)?;
    let least_in_words = if least.is_zero() { "0".to_owned() } else { format!("{}ms", least.as_millis()) };
    if (least.as_secs_f64()..=LONGEST.as_secs_f64()).contains(&total) {
        Ok(Duration::from_secs_f64(total))
    } else {
        Err(format!("must be from {least_in_words} to {}d", LONGEST.as_secs() / 86_400))
    }
}

/// Seconds of numbers with units, the longer ones first, each once; of a number alone. May be negative or infinite.
fn parts(text: &str) -> Option<f64> {
    let number = |text: &str| text.parse::<f64>().ok().filter(|number| !number.is_nan());
    // `inf` and `1e3` are numbers to the library, and nobody's durations.
    if text.contains(['e', 'E', 'f', '+']) {
        return None;
    }
    if let Some(seconds) = number(text) {
        return Some(seconds);
    }
    let (mut total, mut rest, mut next) = (0.0, text, 0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| c == ' ' || c.is_ascii_alphabetic())?;
        let value = number(&rest[..digits])?;
        let unit = rest[digits..].trim_start_matches(' ');
        let end = unit.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(unit.len());
        let which = UNITS.iter().position(|(names, _)| names.contains(&&unit[..end]))?;
        // Not `1m 1h`, and not `1m 1m`. A sign stands for the whole.
        if which < next || (next > 0 && value.is_sign_negative()) {
            return None;
        }
        total += value * UNITS[which].1;
        next = which + 1;
        rest = unit[end..].trim_start_matches(' ');
    }
    (next > 0).then_some(total)
}

/// Parses a size in bytes below 4 GiB, like 512, 4k or 1M.
///
/// # Errors
/// For anything else.
pub fn parse_size(text: &str) -> Result<u32, String> {
    u32::try_from(parse_bytes(text)?).map_err(|_| "must be below 4 GiB".to_owned())
}

/// Parses a number of bytes, like 512, 4k or 64GiB.
///
/// # Errors
/// For anything else.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err("expected a size like 512, 4k or 1M".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a size like 512, 4k or 1M".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "must be below 16 EiB".to_owned())
}

/// Parses a percentage: `1`, `0.5` or `1%`.
///
/// # Errors
/// For anything that is no number from 0 to 100.
pub fn parse_percent(text: &str) -> Result<f64, String> {
    let number: f64 =
        text.trim_end_matches('%').parse().map_err(|_| "expected a percentage like 1 or 0.5".to_owned())?;
    if (0.0..=100.0).contains(&number) { Ok(number) } else { Err("must be from 0 to 100".into()) }
}

/// `1234567` as `1,234,567`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A signed number with thousands separated and its sign always shown.
pub fn change(value: i64) -> String {
    let sign = if value < 0 { '-' } else { '+' };
    format!("{sign}{}", count(value.unsigned_abs()))
}

/// Bytes in the largest unit that leaves a number of one or more: `1.2 MiB`.
pub fn bytes(value: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut scaled = value.abs();
    let mut unit = 0;
    while scaled >= 1_023.95 && unit + 1 < UNITS.len() {
        scaled /= 1_024.0;
        unit += 1;
    }
    let sign = if value < 0.0 { "-" } else { "" };
    if unit == 0 || scaled >= 99.95 {
        format!("{sign}{scaled:.0} {}", UNITS[unit])
    } else {
        format!("{sign}{scaled:.1} {}", UNITS[unit])
    }
}

/// Bytes per second with their sign; 0 for less than one.
pub fn rate(bytes_per_s: f64) -> String {
    if bytes_per_s.abs() < 1.0 {
        return "0".into();
    }
    format!("{}{}/s", if bytes_per_s > 0.0 { "+" } else { "" }, bytes(bytes_per_s))
}

/// Seconds as people say them: `850 ms`, `42 s`, `3 min`, `2 h 5 min`, `4 d 3 h`.
pub fn seconds(value: f64) -> String {
    let whole = value.round() as u64;
    if value == 0.0 {
        "0 s".to_owned()
    } else if value < 1e-3 {
        format!("{:.0} us", value * 1e6)
    } else if value < 1.0 {
        format!("{:.0} ms", value * 1e3)
    } else if value < 10.0 {
        format!("{value:.1} s")
    } else if whole < 120 {
        format!("{whole} s")
    } else if whole < 7_200 {
        format!("{} min", whole / 60)
    } else if whole < 172_800 {
        format!("{} h {} min", whole / 3_600, whole % 3_600 / 60)
    } else {
        format!("{} d {} h", whole / 86_400, whole % 86_400 / 3_600)
    }
}

/// `1 site`, `2 sites`.
pub fn plural(number: usize, what: &str) -> String {
    format!("{} {what}{}", count(number as u64), if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in [
            ("60", 60.0),
            ("1.5", 1.5),
            ("90s", 90.0),
            ("5m", 300.0),
            ("5 m", 300.0),
            ("250ms", 0.25),
            ("1.5h", 5_400.0),
            ("1h30m", 5_400.0),
            ("1h 30min", 5_400.0),
            ("13 h 29 min", 48_540.0),
            ("1d2h3m4s5ms", 93_784.005),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs_f64(seconds)), "{text}");
        }
        for bad in [
            "", "s", "1x", "nan", "inf", "1e300d", "1m1h", "1m1m", "1h30", "1h-30m", "1 2", " ", "1h  x",
            "m5",
        ] {
            assert_eq!(parse_duration(bad), Err(DURATIONS.to_owned()), "{bad}");
        }
        for (bad, least) in [("-1", "0"), ("-1h30m", "0"), ("400d", "0"), ("8784h1s", "0")] {
            assert_eq!(parse_duration(bad), Err(format!("must be from {least} to 366d")), "{bad}");
        }
        for bad in ["0", "99ms", "-1", "367d"] {
            assert_eq!(parse_window(bad), Err("must be from 100ms to 366d".to_owned()), "{bad}");
        }
        assert!(parse_window("100ms").is_ok() && parse_window("366d").is_ok());
    }

    proptest::proptest! {
        /// What is printed can be given back, as close as it was printed.
        #[test]
        fn what_is_written_is_read(value in 0.001_f64..3e7) {
            let read = parse_duration(&seconds(value)).unwrap().as_secs_f64();
            proptest::prop_assert!((read - value).abs() <= (value / 30.0).max(0.051), "{value} {read}");
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[0-9 .smhdin-]{0,12}") {
            let _ = parse_duration(&text);
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("4k"), Ok(4_096));
        assert_eq!(parse_size("1MiB"), Ok(1 << 20));
        for bad in ["", "k", "-1", "4G", "1.5k", "4x", "99999999999999999999"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_bytes("64GiB"), Ok(64 << 30));
        assert!(parse_bytes("99999999T").is_err());
        assert_eq!(parse_percent("1%"), Ok(1.0));
        assert!(
            parse_percent("101").is_err() && parse_percent("x").is_err() && parse_percent("nan").is_err()
        );
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!((count(0), count(999), count(1_234_567)), ("0".into(), "999".into(), "1,234,567".into()));
        assert_eq!((change(-1_000), change(5)), ("-1,000".into(), "+5".into()));
        assert_eq!(bytes(0.0), "0 B");
        assert_eq!(bytes(1_023.99), "1.0 KiB");
        assert_eq!(bytes(1_258_291.0), "1.2 MiB");
        assert_eq!(bytes(-2_048.0), "-2.0 KiB");
        assert_eq!(seconds(0.0), "0 s");
        assert_eq!(seconds(0.0038), "4 ms");
        assert_eq!(seconds(0.000_02), "20 us");
        assert_eq!(seconds(59.6), "60 s");
        assert_eq!(seconds(356_400.0), "4 d 3 h");
    }
}
