//! Tables as Docker prints them.
//!
//! In: a heading and rows of cells. Out: text with the columns aligned: as a rule at least ten wide, three blanks between. What
//! always holds: a cell is one line and holds no tab, so no content breaks the table.

use std::io::{self, Write};

use tabwriter::TabWriter;

/// Writes `rows` under `heading` to `out`.
pub fn write<R, C>(out: &mut dyn Write, heading: &[&str], rows: impl IntoIterator<Item = R>) -> io::Result<()>
where
    R: IntoIterator<Item = C>,
    C: AsRef<str>,
{
    aligned(out, (MIN_WIDTH, PADDING), heading, rows)
}

/// The same with another least width (without the blanks after it) and other blanks between columns.
pub fn aligned<R, C>(
    out: &mut dyn Write,
    (width, padding): (usize, usize),
    heading: &[&str],
    rows: impl IntoIterator<Item = R>,
) -> io::Result<()>
where
    R: IntoIterator<Item = C>,
    C: AsRef<str>,
{
    let mut writer = TabWriter::new(out).minwidth(width).padding(padding);
    writeln!(writer, "{}", heading.join("\t"))?;
    for row in rows {
        let cells: Vec<String> = row.into_iter().map(|cell| one_line(cell.as_ref())).collect();
        writeln!(writer, "{}", cells.join("\t"))?;
    }
    writer.flush()
}

/// Blanks between columns.
const PADDING: usize = 3;
/// A column's least width; Docker counts the blanks after it in.
const MIN_WIDTH: usize = 10 - PADDING;

/// Control characters, tabs and line ends among them, as blanks.
fn one_line(cell: &str) -> String {
    cell.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_as_dockers_do() {
        let mut out = Vec::new();
        let rows = [["nginx", "latest", "9f3c", "2 weeks ago", "133MB"], ["a\tb\nc", "ü", "", "x", "0B"]];
        write(&mut out, &["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"], rows).unwrap();
        let expected = "\
REPOSITORY   TAG       IMAGE ID   CREATED       SIZE
nginx        latest    9f3c       2 weeks ago   133MB
a b c        ü                    x             0B
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
