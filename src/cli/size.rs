//! Sizes as Docker writes them.
//!
//! In: bytes. Out: a number with at most so many significant digits and a decimal unit: `7.83MB`, `133MB`, `0B`.

const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];

/// With three significant digits: the columns of `images` and `history`.
pub fn human(bytes: u64) -> String {
    significant(bytes, 3)
}

/// With four: sums, such as the space that was reclaimed.
pub fn precise(bytes: u64) -> String {
    significant(bytes, 4)
}

fn significant(bytes: u64, digits: usize) -> String {
    let mut unit = 0;
    let mut number = bytes as f64;
    while number >= 1000.0 && unit + 1 < UNITS.len() {
        number /= 1000.0;
        unit += 1;
    }
    let text = round(number, digits);
    // 999.9 kB are 1000 kB when rounded: 1 MB. (Docker writes `1e+03kB`.)
    if text == "1000" && unit + 1 < UNITS.len() {
        return format!("1{}", UNITS[unit + 1]);
    }
    format!("{text}{}", UNITS[unit])
}

/// `number`, below 1000, with so many significant digits and no zeros at its end.
fn round(number: f64, digits: usize) -> String {
    let whole = if number >= 100.0 {
        3
    } else if number >= 10.0 {
        2
    } else {
        1
    };
    let text = format!("{number:.*}", digits.saturating_sub(whole));
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_docker_like() {
        for (bytes, expected, more) in [
            (0, "0B", "0B"),
            (1, "1B", "1B"),
            (999, "999B", "999B"),
            (1000, "1kB", "1kB"),
            (1024, "1.02kB", "1.024kB"),
            (1234, "1.23kB", "1.234kB"),
            (10_500, "10.5kB", "10.5kB"),
            (99_960, "100kB", "99.96kB"),
            (999_499, "999kB", "999.5kB"),
            (999_999, "1MB", "1MB"),
            (1_000_000, "1MB", "1MB"),
            (7_830_000, "7.83MB", "7.83MB"),
            (7_834_567, "7.83MB", "7.835MB"),
            (133_000_000, "133MB", "133MB"),
            (1_200_000_000, "1.2GB", "1.2GB"),
            (2_000_000_000_000, "2TB", "2TB"),
            (u64::MAX, "18.4EB", "18.45EB"),
        ] {
            assert_eq!(human(bytes), expected, "{bytes}");
            assert_eq!(precise(bytes), more, "{bytes}");
        }
    }
}
