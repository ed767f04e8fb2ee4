//! Which time a build writes: the epoch, if any.
//!
//! In: `--timestamp`, the build arguments, the environment. Out: the one that holds. What always holds: the first that
//! is given wins, even if it is empty (then there is none); anything but a whole number from 0 is an error by name.

/// The time that everything new gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Epoch {
    /// As written: the value of the ARG in stages that declare it.
    pub text: String,
    /// Seconds since 1970; `None` where the winner is empty.
    pub seconds: Option<i64>,
}

/// The last second whose date RFC 3339 can write, 9999-12-31T23:59:59Z: image configs have no other.
const LAST: i64 = 253_402_300_799;

/// Of all that is given, the one that holds; `None` where nothing is given.
pub(crate) fn choose(
    timestamp: Option<&str>,
    build_args: &[(String, String)],
    environment: Option<&str>,
) -> Result<Option<Epoch>, String> {
    let build_arg = build_args.iter().rfind(|(name, _)| name == "SOURCE_DATE_EPOCH").map(|(_, value)| value.as_str());
    let given = [
        ("--timestamp", timestamp),
        ("--build-arg SOURCE_DATE_EPOCH", build_arg),
        ("SOURCE_DATE_EPOCH in the environment", environment),
    ];
    match given.into_iter().find_map(|(origin, value)| Some((origin, value?))) {
        None => Ok(None),
        Some((origin, text)) => parse(text).map(Some).map_err(|why| format!("{origin}: {why}")),
    }
}

/// Reads one.
pub(crate) fn parse(text: &str) -> Result<Epoch, String> {
    if text.is_empty() {
        return Ok(Epoch { text: String::new(), seconds: None });
    }
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(seconds) if digits && (0..=LAST).contains(&seconds) => {
            Ok(Epoch { text: text.to_owned(), seconds: Some(seconds) })
        }
        _ if digits => Err(format!("{text} lies after the year 9999")),
        _ => Err(format!("\"{text}\" is not a number of seconds since 1970, such as 1700000000")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_is_given_wins() {
        let args = |value: &[&str]| -> Vec<(String, String)> {
            value.iter().map(|value| ("SOURCE_DATE_EPOCH".to_owned(), (*value).to_owned())).collect()
        };
        for (timestamp, build_args, environment, expected) in [
            (None, args(&[]), None, Ok(None)),
            (None, args(&[]), Some("3"), Ok(Some(Some(3)))),
            (None, args(&["2"]), Some("3"), Ok(Some(Some(2)))),
            (None, args(&["1", "2"]), Some("3"), Ok(Some(Some(2)))),
            (Some("1"), args(&["2"]), Some("3"), Ok(Some(Some(1)))),
            (Some(""), args(&["2"]), Some("3"), Ok(Some(None))),
            (None, args(&[""]), Some("3"), Ok(Some(None))),
            (None, args(&[]), Some(""), Ok(Some(None))),
            (Some("0"), args(&["context"]), None, Ok(Some(Some(0)))),
            (
                None,
                args(&["context"]),
                None,
                Err("--build-arg SOURCE_DATE_EPOCH: \"context\" is not a number of seconds since 1970, \
                     such as 1700000000"),
            ),
            (
                None,
                args(&[]),
                Some("99999999999999999999"),
                Err("SOURCE_DATE_EPOCH in the environment: 99999999999999999999 lies after the year 9999"),
            ),
            (Some("253402300800"), args(&[]), None, Err("--timestamp: 253402300800 lies after the year 9999")),
        ] {
            let got = choose(timestamp, &build_args, environment).map(|epoch| epoch.map(|epoch| epoch.seconds));
            assert_eq!(got, expected.map_err(str::to_owned), "{timestamp:?} {build_args:?} {environment:?}");
        }
        for bad in ["-1", "+1", "1.5", " 1", "0x1", "today"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
