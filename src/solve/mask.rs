//! Keeps the values of secrets out of what a command writes.
//!
//! In: what it writes, in pieces as they come. Out: the same with `****` for each value. What always holds: a value that
//! is split between two pieces is found too; no more is held back than what may be the beginning of one.

/// Shorter values would hide what is no secret.
const SHORTEST: usize = 3;

const MASK: &[u8] = b"****";

/// Values that must not be seen, longest first.
#[derive(Debug, Default)]
pub(super) struct Mask {
    values: Vec<Vec<u8>>,
}

/// What was held back of one stream.
#[derive(Debug, Default)]
pub(super) struct Held(Vec<u8>);

impl Mask {
    /// Hides `value` from now on, without the line end that files have; of several lines each.
    pub(super) fn add(&mut self, value: &[u8]) {
        let whole = value.trim_ascii_end();
        for value in std::iter::once(whole).chain(whole.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii)) {
            if value.len() >= SHORTEST && !self.values.iter().any(|known| known == value) {
                self.values.push(value.to_vec());
            }
        }
        self.values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    }

    /// Passes on what is certain after `bytes` came.
    pub(super) fn pass(&self, held: &mut Held, bytes: &[u8], to: &mut dyn FnMut(&[u8])) {
        if self.values.is_empty() {
            return to(bytes);
        }
        let mut all = std::mem::take(&mut held.0);
        all.extend_from_slice(bytes);
        let mut out = Vec::with_capacity(all.len());
        let mut rest = all.as_slice();
        while !rest.is_empty() {
            // A longer value may still come to be where a shorter one is complete.
            if self.values.iter().any(|value| value.len() > rest.len() && value.starts_with(rest)) {
                break;
            }
            match self.values.iter().find(|value| rest.starts_with(value)) {
                Some(value) => {
                    out.extend_from_slice(MASK);
                    rest = &rest[value.len()..];
                }
                None => {
                    out.push(rest[0]);
                    rest = &rest[1..];
                }
            }
        }
        held.0 = rest.to_vec();
        if !out.is_empty() {
            to(&out);
        }
    }

    /// Passes on what is left when nothing more comes.
    pub(super) fn end(&self, held: &mut Held, to: &mut dyn FnMut(&[u8])) {
        let mut rest = std::mem::take(&mut held.0);
        let mut out = Vec::new();
        while let Some(first) = rest.first().copied() {
            let length = match self.values.iter().find(|value| rest.starts_with(value)) {
                Some(value) => {
                    out.extend_from_slice(MASK);
                    value.len()
                }
                None => {
                    out.push(first);
                    1
                }
            };
            rest.drain(..length);
        }
        if !out.is_empty() {
            to(&out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(values: &[&str], pieces: &[&str]) -> String {
        let mut mask = Mask::default();
        values.iter().for_each(|value| mask.add(value.as_bytes()));
        let (mut held, mut out) = (Held::default(), Vec::new());
        for piece in pieces {
            mask.pass(&mut held, piece.as_bytes(), &mut |bytes| out.extend_from_slice(bytes));
        }
        mask.end(&mut held, &mut |bytes| out.extend_from_slice(bytes));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn values_are_hidden_however_they_come() {
        for (values, pieces, expected) in [
            (&["hunter2"][..], &["my hunter2 is hunter2\n"][..], "my **** is ****\n"),
            (&["hunter2\n"], &["hun", "ter2", "\n"], "****\n"),
            (&["hunter2"], &["h", "u", "n", "hunter", "2"], "hun****"),
            (&["hunter2"], &["hunter"], "hunter"),
            (&["aab"], &["aaab"], "a****"),
            (&["abc", "abcdef"], &["abcde", "f abcx abc"], "**** ****x ****"),
            (&["one line\nand two\n"], &["and two, one line\n"], "****, ****\n"),
            (&["ab", "", "\n"], &["ab\n"], "ab\n"),
            (&[], &["x", "y"], "xy"),
        ] {
            assert_eq!(masked(values, pieces), expected, "{values:?} {pieces:?}");
        }
    }

    #[test]
    fn only_what_may_be_a_beginning_is_held_back() {
        let mut mask = Mask::default();
        mask.add(b"hunter2");
        let (mut held, mut out) = (Held::default(), Vec::new());
        mask.pass(&mut held, b"what a hun", &mut |bytes| out.extend_from_slice(bytes));
        assert_eq!(out, b"what a ");
    }
}
