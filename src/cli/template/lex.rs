//! A template in pieces.
//!
//! In: the text. Out: texts, trimmed where `{{-` and `-}}` say so, and actions in tokens with their places. What always
//! holds: a string or a comment may hold `}}`.

use super::Mistake;

/// A part of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    Text(String),
    /// What stands between `{{` and `}}`, and where it begins.
    Action(usize, Vec<(usize, Token)>),
}

/// A word of an action.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// `.`
    Dot,
    /// `.Name`; joined to the token before it if `true`.
    Field(String, bool),
    /// `$` or `$name`.
    Variable(String),
    /// A keyword or the name of a function.
    Word(String),
    Text(String),
    Integer(i64),
    Float(f64),
    Pipe,
    Open,
    Close,
    Comma,
    Declare,
    Assign,
}

/// Takes the text apart. `escapes`: `\t` and `\n` in texts are a tab and the end of a line.
pub(super) fn lex(source: &str, escapes: bool) -> Result<Vec<Piece>, Mistake> {
    let mut pieces = Vec::new();
    let mut at = 0;
    let mut trim_next = false;
    loop {
        let start = source[at..].find("{{").map(|found| at + found);
        let text = &source[at..start.unwrap_or(source.len())];
        let text = if escapes { text.replace("\\t", "\t").replace("\\n", "\n") } else { text.to_owned() };
        let mut text = text.as_str();
        if trim_next {
            text = text.trim_start();
        }
        let Some(start) = start else {
            if !text.is_empty() {
                pieces.push(Piece::Text(text.to_owned()));
            }
            return Ok(pieces);
        };
        let mut inside = start + 2;
        if source[inside..].starts_with('-') && source[inside + 1..].starts_with(char::is_whitespace) {
            text = text.trim_end();
            inside += 1;
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(text.to_owned()));
        }
        let comment = source[inside..].trim_start();
        if comment.starts_with("/*") {
            let open = source.len() - comment.len();
            let end = source[open..].find("*/").map(|found| open + found + 2);
            let end = end.ok_or_else(|| Mistake::new(open, "the comment is not closed"))?;
            let rest = source[end..].trim_start();
            trim_next = rest.starts_with("-}}") && end < source.len() - rest.len();
            let rest = if trim_next { &rest[1..] } else { rest };
            if !rest.starts_with("}}") {
                return Err(Mistake::new(end, "a comment stands alone between {{ and }}"));
            }
            at = source.len() - rest.len() + 2;
            continue;
        }
        let (tokens, end) = action(source, start, inside)?;
        trim_next = source[..end].ends_with('-');
        pieces.push(Piece::Action(start, tokens));
        at = end + 2;
    }
}

/// The tokens of an action that begins at `at`, and the place of its `}}` (of a `-}}` that of the braces).
fn action(source: &str, start: usize, mut at: usize) -> Result<(Vec<(usize, Token)>, usize), Mistake> {
    let mut tokens = Vec::new();
    let mut joined = false;
    loop {
        let rest = &source[at..];
        let blank = rest.len() - rest.trim_start().len();
        if blank > 0 {
            at += blank;
            joined = false;
            if source[at..].starts_with("-}}") {
                return Ok((tokens, at + 1));
            }
            continue;
        }
        if rest.starts_with("}}") {
            return Ok((tokens, at));
        }
        let Some(letter) = rest.chars().next() else {
            return Err(Mistake::new(start, "{{ is not closed"));
        };
        let (token, length) = match letter {
            '|' => (Token::Pipe, 1),
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            ',' => (Token::Comma, 1),
            ':' if rest.starts_with(":=") => (Token::Declare, 2),
            '=' => (Token::Assign, 1),
            '.' => match name_length(&rest[1..]) {
                0 if rest[1..].starts_with(|next: char| next.is_ascii_digit()) => number(rest, at)?,
                0 => (Token::Dot, 1),
                length => (Token::Field(rest[1..=length].to_owned(), joined), length + 1),
            },
            '$' => {
                let length = name_length(&rest[1..]);
                (Token::Variable(rest[1..=length].to_owned()), length + 1)
            }
            '"' => quoted(rest, at)?,
            '\'' => letter_code(rest, at)?,
            '`' => match rest[1..].find('`') {
                Some(length) => (Token::Text(rest[1..=length].to_owned()), length + 2),
                None => return Err(Mistake::new(at, "the string is not closed")),
            },
            '0'..='9' | '-' | '+' => number(rest, at)?,
            _ => match name_length(rest) {
                0 => return Err(Mistake::new(at, format!("{letter} means nothing here"))),
                length => (Token::Word(rest[..length].to_owned()), length),
            },
        };
        joined = matches!(token, Token::Field(..) | Token::Variable(_) | Token::Close | Token::Dot);
        tokens.push((at, token));
        at += length;
    }
}

fn name_length(text: &str) -> usize {
    if text.starts_with(|first: char| first.is_numeric()) {
        return 0;
    }
    text.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(text.len())
}

fn number(text: &str, at: usize) -> Result<(Token, usize), Mistake> {
    let hexadecimal = text.trim_start_matches(['+', '-']).to_ascii_lowercase().starts_with("0x");
    let mut before = ' ';
    let in_number = |(place, letter): &(usize, char)| {
        let sign = (*place == 0 || (!hexadecimal && "eE".contains(before))) && "+-".contains(*letter);
        before = *letter;
        sign || letter.is_ascii_alphanumeric() || *letter == '.' || *letter == '_'
    };
    let length = text.char_indices().take_while(in_number).map(|(_, letter)| letter.len_utf8()).sum();
    let digits = text[..length].replace('_', "");
    let whole = digits.strip_prefix(['+', '-']).unwrap_or(&digits);
    let (base, whole) = match whole.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &whole[2..]),
        [b'0', b'b' | b'B', ..] => (2, &whole[2..]),
        [b'0', b'o' | b'O', ..] => (8, &whole[2..]),
        [b'0', b'0'..=b'9', ..] => (8, &whole[1..]),
        _ => (10, whole),
    };
    // Of what is left no sign may lead.
    if whole.starts_with(|first: char| first.is_ascii_alphanumeric())
        && let Ok(number) = i64::from_str_radix(whole, base)
    {
        return Ok((Token::Integer(if digits.starts_with('-') { -number } else { number }), length));
    }
    match digits.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok((Token::Float(number), length)),
        _ => Err(Mistake::new(at, format!("{} is no number", &text[..length.max(1)]))),
    }
}

/// A letter in `'`, which is its number.
fn letter_code(text: &str, at: usize) -> Result<(Token, usize), Mistake> {
    let bad = || Mistake::new(at, "a letter is written such as 'a'");
    let escaped = text[1..].starts_with('\\');
    let end = text[1..].char_indices().skip(if escaped { 2 } else { 1 }).find(|(_, letter)| *letter == '\'');
    let length = end.ok_or_else(bad)?.0 + 1;
    let inner = if escaped {
        match quoted(&format!("\"{}\"", &text[1..length]), at)?.0 {
            Token::Text(inner) => inner,
            _ => return Err(bad()),
        }
    } else {
        text[1..length].to_owned()
    };
    let mut letters = inner.chars();
    match (letters.next(), letters.next()) {
        (Some(letter), None) => Ok((Token::Integer(u32::from(letter).into()), length + 1)),
        _ => Err(bad()),
    }
}

/// A string as Go writes it.
fn quoted(text: &str, at: usize) -> Result<(Token, usize), Mistake> {
    let mut out = String::new();
    let mut letters = text.char_indices().skip(1);
    while let Some((place, letter)) = letters.next() {
        match letter {
            '"' => return Ok((Token::Text(out), place + 1)),
            '\n' => break,
            '\\' => {
                let Some((_, escaped)) = letters.next() else { break };
                let mut code = |digits: usize| {
                    let hex: String = letters.by_ref().take(digits).map(|(_, digit)| digit).collect();
                    u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32)
                };
                let meant = match escaped {
                    'n' => Some('\n'),
                    't' => Some('\t'),
                    'r' => Some('\r'),
                    'a' => Some('\x07'),
                    'b' => Some('\x08'),
                    'f' => Some('\x0c'),
                    'v' => Some('\x0b'),
                    '\\' | '"' | '\'' => Some(escaped),
                    'x' => code(2),
                    'u' => code(4),
                    'U' => code(8),
                    _ => None,
                };
                let unknown = || Mistake::new(at + place, format!("\\{escaped} means nothing in a string"));
                out.push(meant.ok_or_else(unknown)?);
            }
            letter => out.push(letter),
        }
    }
    Err(Mistake::new(at, "the string is not closed"))
}
