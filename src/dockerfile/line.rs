//! A logical line: an instruction whose physical lines were glued together, and the way back to the source.
//!
//! In: the pieces that the grammar cut out of the source. Out: one text, and spans of the source for ranges of it.
//! What always holds: the text is the pieces in order, with nothing between them; a range of the text maps to a span
//! that begins where its first byte stands in the source and ends after its last one.

use std::ops::Range;

use crate::diagnostic::Span;

/// One instruction on one line.
#[derive(Debug)]
pub(super) struct LogicalLine {
    /// The pieces, glued together. White space at the ends is kept.
    pub(super) text: String,
    /// For each piece that is not empty: its offset in `text`, and in the source.
    joints: Vec<(usize, usize)>,
    /// The instruction in the source.
    pub(super) span: Span,
}

impl LogicalLine {
    /// Glues `pieces` of `source` together. The ranges are relative to `base`, an offset in `source`.
    pub(super) fn new(source: &str, base: usize, pieces: &[Range<usize>]) -> Self {
        let mut text = String::with_capacity(pieces.iter().map(ExactSizeIterator::len).sum());
        let mut joints = Vec::with_capacity(pieces.len());
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            joints.push((text.len(), base + piece.start));
            text.push_str(&source[base + piece.start..base + piece.end]);
        }
        let first = pieces.first().map_or(base, |piece| base + piece.start);
        let mut line = Self { text, joints, span: Span::new(first, first) };
        let shown = line.trimmed();
        if !shown.is_empty() {
            line.span = line.span(shown);
        }
        line
    }

    /// The part of the text that is not white space at its ends.
    pub(super) fn trimmed(&self) -> Range<usize> {
        let start = self.text.len() - self.text.trim_start().len();
        start..start.max(self.text.trim_end().len())
    }

    /// Where a range of the text stands in the source.
    pub(super) fn span(&self, range: Range<usize>) -> Span {
        let start = self.offset(range.start);
        let end = if range.end > range.start { self.offset(range.end - 1) + 1 } else { start };
        Span::new(start, end)
    }

    fn offset(&self, at: usize) -> usize {
        match self.joints.partition_point(|(text, _)| *text <= at).checked_sub(1) {
            Some(index) => {
                let (text, source) = self.joints[index]; // partition_point is at most the length
                source + (at - text)
            }
            None => self.span.start,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_map_back_over_joints() {
        //            0123456 789 0123456
        let source = "RUN a \\\n# c\n b c";
        let line = LogicalLine::new(source, 0, &[0..6, 12..16]);
        assert_eq!(line.text, "RUN a  b c");
        assert_eq!(line.span, Span::new(0, 16));
        for (range, span) in [(0..3, (0, 3)), (4..5, (4, 5)), (7..8, (13, 14)), (4..10, (4, 16)), (10..10, (16, 16))] {
            assert_eq!(line.span(range.clone()), Span::new(span.0, span.1), "{range:?}");
        }
    }

    #[test]
    fn nothing_is_a_line_too() {
        let line = LogicalLine::new("\\", 0, &[0..0, 1..1]);
        assert_eq!((line.text.as_str(), line.trimmed(), line.span), ("", 0..0, Span::new(0, 0)));
    }
}
