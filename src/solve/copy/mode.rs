//! `--chmod` applied to a mode.
//!
//! In: the permission bits that a source has and a parsed `--chmod`. Out: those that it gets. What always holds: the
//! result is at most 0o7777, and `X` gives execution to directories and to what somebody may already execute.

use crate::plan::step::{Chmod, ModeClause};

/// The mode that `--chmod` makes of `mode`.
pub(super) fn apply(chmod: &Chmod, mode: u32, is_directory: bool) -> u32 {
    match chmod {
        Chmod::Octal(mode) => mode & 0o7777,
        Chmod::Symbolic(clauses) => clauses.iter().fold(mode & 0o7777, |mode, clause| step(clause, mode, is_directory)),
    }
}

/// The mode of a directory that has to be made on the way: an octal mode counts, a symbolic one has nothing to go by.
pub(super) fn of_new_directory(chmod: Option<&Chmod>) -> u32 {
    match chmod {
        Some(Chmod::Octal(mode)) => mode & 0o7777,
        Some(Chmod::Symbolic(_)) | None => 0o755,
    }
}

fn step(clause: &ModeClause, mode: u32, is_directory: bool) -> u32 {
    let (user, group, other) = clause.who;
    // `rwx` of one class, and the special bits in the place that `s` and `t` have.
    let (mut class, mut special) = (0, 0);
    for permission in clause.permissions.chars() {
        match permission {
            'r' => class |= 4,
            'w' => class |= 2,
            'x' => class |= 1,
            'X' if is_directory || mode & 0o111 != 0 => class |= 1,
            's' => special |= if user { 0o4000 } else { 0 } | if group { 0o2000 } else { 0 },
            't' => special |= 0o1000,
            'u' => class |= mode >> 6 & 7,
            'g' => class |= mode >> 3 & 7,
            'o' => class |= mode & 7,
            _ => {}
        }
    }
    let spread = |class: u32| {
        (if user { class << 6 } else { 0 }) | (if group { class << 3 } else { 0 }) | if other { class } else { 0 }
    };
    let bits = spread(class) | special;
    match clause.operator {
        '+' => mode | bits,
        '-' => mode & !bits,
        _ => {
            let special_of_who =
                if user { 0o4000 } else { 0 } | if group { 0o2000 } else { 0 } | if other { 0o1000 } else { 0 };
            // A directory keeps its set-id bits unless they are named, as with chmod(1).
            let cleared = spread(7) | if is_directory { special_of_who & 0o1000 } else { special_of_who };
            mode & !cleared | bits
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clause(text: &str) -> ModeClause {
        let operator = text.find(['+', '-', '=']).expect("it has an operator");
        let who = &text[..operator];
        let all = who.is_empty() || who.contains('a');
        ModeClause {
            who: (all || who.contains('u'), all || who.contains('g'), all || who.contains('o')),
            operator: char::from(text.as_bytes()[operator]),
            permissions: text[operator + 1..].to_owned(),
        }
    }

    #[test]
    fn symbolic_modes() {
        for (text, mode, directory, expected) in [
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o700, false, 0o755),
            ("u=rwX,go=rX", 0o700, true, 0o755),
            ("u=rwX,go=rX", 0o600, true, 0o755),
            ("+x", 0o644, false, 0o755),
            ("g-w", 0o664, false, 0o644),
            ("a=r", 0o4755, false, 0o444),
            ("a=rx", 0o2755, true, 0o2555),
            ("u+s,g+s", 0o755, false, 0o6755),
            ("u-s", 0o4755, false, 0o755),
            ("+t", 0o777, true, 0o1777),
            ("g=u", 0o640, false, 0o660),
            ("o=g,u-x", 0o751, false, 0o655),
            ("go=", 0o777, false, 0o700),
            ("+X", 0o644, false, 0o644),
            ("u+x,go+X", 0o644, false, 0o755),
        ] {
            let chmod = Chmod::Symbolic(text.split(',').map(clause).collect());
            assert_eq!(
                apply(&chmod, mode, directory),
                expected,
                "{text} of {mode:o}: {:o}",
                apply(&chmod, mode, directory)
            );
        }
        assert_eq!(apply(&Chmod::Octal(0), 0o777, true), 0);
        assert_eq!(of_new_directory(Some(&Chmod::Octal(0o777))), 0o777);
        assert_eq!(of_new_directory(Some(&Chmod::Symbolic(vec![clause("+x")]))), 0o755);
    }
}
