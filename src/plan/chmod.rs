//! The value of `--chmod`: octal or symbolic.
//!
//! In: the text, variables expanded. Out: [`Chmod`]. What always holds: an octal mode is at most 07777, and every
//! clause has an operator and only permissions that chmod(1) knows.

use super::step::{Chmod, ModeClause};

/// Reads `644`, `0755`, `u=rwX,go=rX`, `+x`, `u+r-w`…; the error is one sentence for the user.
pub fn parse_mode(text: &str) -> Result<Chmod, String> {
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        let octal = text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
        return match u32::from_str_radix(text, 8) {
            Ok(mode) if octal && mode <= 0o7777 => Ok(Chmod::Octal(mode)),
            _ => Err(format!(
                "invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777, or symbolic (u=rwX,go=rX)"
            )),
        };
    }
    let mut clauses = Vec::new();
    for clause in text.split(',') {
        parse_clause(clause, &mut clauses).map_err(|why| format!("invalid chmod parameter: '{text}': {why}"))?;
    }
    Ok(Chmod::Symbolic(clauses))
}

/// Reads `[ugoa]*([-+=][rwxXstugo]*)+`: one clause for each operator.
fn parse_clause(text: &str, clauses: &mut Vec<ModeClause>) -> Result<(), String> {
    let is_operator = |c: char| matches!(c, '+' | '-' | '=');
    let Some(first) = text.find(is_operator) else {
        return Err(format!("\"{text}\" has none of the operators + - ="));
    };
    let (classes, mut rest) = text.split_at(first);
    let mut who = (false, false, false);
    for class in classes.chars() {
        match class {
            'u' => who.0 = true,
            'g' => who.1 = true,
            'o' => who.2 = true,
            'a' => who = (true, true, true),
            other => return Err(format!("\"{other}\" is none of the classes u g o a")),
        }
    }
    if classes.is_empty() {
        who = (true, true, true);
    }
    while let Some(operator) = rest.chars().next() {
        let tail = &rest[operator.len_utf8()..];
        let (permissions, next) = tail.split_at(tail.find(is_operator).unwrap_or(tail.len()));
        if let Some(other) = permissions.chars().find(|c| !"rwxXstugo".contains(*c)) {
            return Err(format!("\"{other}\" is none of the permissions r w x X s t u g o"));
        }
        clauses.push(ModeClause { who, operator, permissions: permissions.to_owned() });
        rest = next;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One word per clause: classes, operator, permissions.
    fn show(text: &str) -> Result<String, String> {
        Ok(match parse_mode(text)? {
            Chmod::Octal(mode) => format!("{mode:o}"),
            Chmod::Symbolic(clauses) => {
                let words = clauses.iter().map(|ModeClause { who, operator, permissions }| {
                    let class = |is: bool, name: &'static str| if is { name } else { "" };
                    format!("{}{}{}{operator}{permissions}", class(who.0, "u"), class(who.1, "g"), class(who.2, "o"))
                });
                words.collect::<Vec<_>>().join(" ")
            }
        })
    }

    #[test]
    fn modes_are_read() {
        for (text, expected) in [
            ("644", "644"),
            ("0644", "644"),
            ("0", "0"),
            ("7777", "7777"),
            ("00755", "755"),
            ("+x", "ugo+x"),
            ("u=rwX,go=rX", "u=rwX go=rX"),
            ("a-w", "ugo-w"),
            ("ug+r-w", "ug+r ug-w"),
            ("u=", "u="),
            ("g=u,o=t", "g=u o=t"),
            ("ua+s", "ugo+s"),
        ] {
            assert_eq!(show(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_mode_is_refused_with_the_reason() {
        for (text, reason) in [
            ("64a", "octal"),
            ("10000", "octal"),
            ("888", "octal"),
            ("99999999999999999999", "octal"),
            ("0x1", "octal"),
            ("", "none of the operators"),
            ("rwx", "none of the operators"),
            ("u+r,", "none of the operators"),
            ("z+r", "\"z\" is none of the classes"),
            ("u+q", "\"q\" is none of the permissions"),
            ("é=r", "\"é\" is none of the classes"),
            ("u=é", "\"é\" is none of the permissions"),
        ] {
            let error = show(text).unwrap_err();
            assert!(error.starts_with("invalid chmod parameter") && error.contains(reason), "{text}: {error}");
        }
    }
}
