//! What commands write, made fit to show.
//!
//! In: bytes as they come: parts of lines, any encoding, escape sequences. Out: whole lines (`Lines`), the last of
//! them ([`Tail`]), and text that fits into a number of columns (`clip`). What always holds: no step's output can
//! fill the memory, and text from `printable` holds no control character.

use std::collections::VecDeque;

use unicode_width::UnicodeWidthChar;

/// A line longer than this is cut into several.
const LONGEST: usize = 64 * 1024;

/// Puts lines together from parts.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    part: Vec<u8>,
}

impl Lines {
    /// Takes `bytes` and gives each line that is complete to `line`, without its end.
    pub(crate) fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&[u8])) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.part.extend_from_slice(&rest[..end]);
            line(self.part.strip_suffix(b"\r").unwrap_or(&self.part));
            self.part.clear();
            rest = &rest[end + 1..];
        }
        self.part.extend_from_slice(rest);
        while self.part.len() > LONGEST {
            let after = self.part.split_off(LONGEST);
            line(&self.part);
            self.part = after;
        }
    }

    /// The line that is not complete yet.
    pub(crate) fn part(&self) -> &[u8] {
        &self.part
    }

    /// Gives the last line to `line`, if it has no end.
    pub(crate) fn finish(&mut self, mut line: impl FnMut(&[u8])) {
        if !self.part.is_empty() {
            line(self.part.strip_suffix(b"\r").unwrap_or(&self.part));
            self.part.clear();
        }
    }
}

/// What a terminal would show of a line that carriage returns write over.
pub(crate) fn overwritten(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    line.rsplit(|byte| *byte == b'\r').next().unwrap_or(line)
}

/// `line` as text without escape sequences and control characters; tabs become blanks.
pub(crate) fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut shown = String::with_capacity(text.len());
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\u{1b}' => match letters.next() {
                // CSI: parameters, then one letter that ends it.
                Some('[') => while letters.next().is_some_and(|letter| !('@'..='~').contains(&letter)) {},
                // OSC (titles, links): up to BEL or ESC \.
                Some(']') => {
                    while let Some(letter) = letters.next() {
                        if letter == '\u{7}' || letter == '\u{1b}' && letters.next_if_eq(&'\\').is_some() {
                            break;
                        }
                    }
                }
                // Two-letter sequences, and those with an intermediate (character sets).
                Some('(' | ')' | '#' | '%') => drop(letters.next()),
                _ => {}
            },
            '\t' => shown.push_str("    "),
            letter if letter.is_control() => {}
            letter => shown.push(letter),
        }
    }
    shown
}

/// The last lines of a step's output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tail {
    /// The lines, oldest first, printable.
    pub lines: VecDeque<String>,
    /// How many lines there were in all.
    pub seen: usize,
}

impl Tail {
    /// Lines that are kept.
    pub const KEPT: usize = 20;
    /// Columns of a line that are kept.
    const WIDEST: usize = 2000;

    /// Adds a line.
    pub(crate) fn push(&mut self, line: &[u8]) {
        if self.lines.len() == Self::KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(clip(&printable(overwritten(line)), Self::WIDEST));
        self.seen += 1;
    }
}

/// Columns that `letter` takes on a terminal.
fn columns(letter: char) -> usize {
    letter.width().unwrap_or(0)
}

/// Columns that `text`, without control characters, takes on a terminal.
pub(crate) fn width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

/// `text` cut to at most `limit` columns; what is cut ends in `…`.
pub(crate) fn clip(text: &str, limit: usize) -> String {
    if width(text) <= limit {
        return text.to_owned();
    }
    let mut room = limit.saturating_sub(1);
    let mut shown: String = text
        .chars()
        .take_while(|letter| {
            let fits = columns(*letter) <= room;
            room = room.saturating_sub(columns(*letter));
            fits
        })
        .collect();
    if limit > 0 {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole() {
        for (parts, expected) in [
            (vec!["a\nb\n"], vec!["a", "b"]),
            (vec!["a", "b\nc", "\n", "d"], vec!["ab", "c", "d"]),
            (vec!["a\r\n", "b\r", "\nc\r"], vec!["a", "b", "c"]),
            (vec!["\n\n"], vec!["", ""]),
            (vec![""], vec![]),
        ] {
            let mut lines = Lines::default();
            let mut got = Vec::new();
            let mut take = |line: &[u8]| got.push(String::from_utf8(line.to_vec()).unwrap());
            for part in &parts {
                lines.push(part.as_bytes(), &mut take);
            }
            lines.finish(&mut take);
            assert_eq!(got, expected, "{parts:?}");
        }
    }

    #[test]
    fn a_line_without_end_does_not_fill_the_memory() {
        let mut lines = Lines::default();
        let mut sizes = Vec::new();
        lines.push(&vec![b'x'; 2 * LONGEST + 5], |line| sizes.push(line.len()));
        assert_eq!((sizes, lines.part().len()), (vec![LONGEST, LONGEST], 5));
    }

    #[test]
    fn control_characters_are_left_out() {
        for (line, expected) in [
            (&b"plain"[..], "plain"),
            (b"\x1b[1;31mred\x1b[0m", "red"),
            (b"\x1b]0;title\x07text", "text"),
            (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
            (b"\x1b(Bx\x1bMy", "xy"),
            (b"a\tb\x08\x00c", "a    bc"),
            (b"\x1b[", ""),
            (b"\x1b", ""),
            (b"caf\xe9", "caf\u{fffd}"),
            ("ü→".as_bytes(), "ü→"),
        ] {
            assert_eq!(printable(line), expected, "{line:?}");
        }
        assert_eq!(overwritten(b"10%\r50%\r100%"), b"100%");
        assert_eq!(overwritten(b"10%\r"), b"10%");
    }

    #[test]
    fn the_tail_keeps_the_last_lines() {
        let mut tail = Tail::default();
        for i in 0..50 {
            tail.push(format!("line {i}").as_bytes());
        }
        assert_eq!((tail.seen, tail.lines.len()), (50, Tail::KEPT));
        assert_eq!(tail.lines.front().map(String::as_str), Some("line 30"));
        assert_eq!(tail.lines.back().map(String::as_str), Some("line 49"));
    }

    #[test]
    fn text_is_cut_to_columns() {
        for (text, limit, expected) in [
            ("abc", 3, "abc"),
            ("abcd", 3, "ab…"),
            ("abcd", 1, "…"),
            ("abcd", 0, ""),
            ("日本語", 6, "日本語"),
            ("日本語", 5, "日本…"),
            ("日本語", 4, "日…"),
            ("e\u{301}x", 2, "e\u{301}x"),
        ] {
            assert_eq!(clip(text, limit), expected, "{text} {limit}");
            assert!(width(&clip(text, limit)) <= limit, "{text} {limit}");
        }
    }
}
