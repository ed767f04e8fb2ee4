//! What a server asks for in `WWW-Authenticate`.
//!
//! In: the header's value. Out: its challenges in order. What always holds: a value that does not keep to RFC 9110 gives
//! no challenge at all, rather than one that was guessed; parameter names are in lower case and not repeated.

/// One way to authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    /// `basic`, `bearer`, in lower case.
    pub(super) scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// The value of a parameter.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Reads the value of one header.
pub(super) fn parse(value: &str) -> Option<Vec<Challenge>> {
    let mut rest = Rest(value.as_bytes());
    let mut challenges: Vec<Challenge> = Vec::new();
    loop {
        rest.skip(b" \t,");
        if rest.0.is_empty() {
            return (!challenges.is_empty()).then_some(challenges);
        }
        let word = rest.token()?;
        let before = rest.0.len();
        rest.skip(b" \t");
        if rest.eat(b'=') {
            // A parameter of the challenge before it.
            rest.skip(b" \t");
            let value = if rest.eat(b'"') { rest.quoted()? } else { rest.token()? };
            let last = challenges.last_mut()?;
            let name = word.to_ascii_lowercase();
            if last.get(&name).is_some() {
                return None;
            }
            last.parameters.push((name, value));
            rest.skip(b" \t");
            if !rest.0.is_empty() && rest.0[0] != b',' {
                return None;
            }
        } else {
            // The scheme of the next one: a space or a comma follows.
            if rest.0.len() == before && !rest.0.is_empty() && rest.0[0] != b',' {
                return None;
            }
            challenges.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
        }
    }
}

struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn skip(&mut self, any_of: &[u8]) {
        let end = self.0.iter().position(|byte| !any_of.contains(byte)).unwrap_or(self.0.len());
        self.0 = &self.0[end..];
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.0.first() == Some(&byte);
        if found {
            self.0 = &self.0[1..];
        }
        found
    }

    fn token(&mut self) -> Option<String> {
        let in_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        let end = self.0.iter().position(|byte| !in_token(byte)).unwrap_or(self.0.len());
        let (token, rest) = self.0.split_at(end);
        self.0 = rest;
        (end > 0).then(|| String::from_utf8_lossy(token).into_owned())
    }

    /// What follows an opening quote, up to the closing one.
    fn quoted(&mut self) -> Option<String> {
        let mut bytes = Vec::new();
        loop {
            let (first, rest) = self.0.split_first()?;
            self.0 = rest;
            match first {
                b'"' => return String::from_utf8(bytes).ok(),
                b'\\' => {
                    let (escaped, rest) = self.0.split_first()?;
                    bytes.push(*escaped);
                    self.0 = rest;
                }
                byte => bytes.push(*byte),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> String {
        let Some(challenges) = parse(value) else { return "nothing".into() };
        let one = |challenge: &Challenge| {
            let parameters = challenge.parameters.iter().map(|(name, value)| format!(" {name}={value}"));
            format!("{}{}", challenge.scheme, parameters.collect::<String>())
        };
        challenges.iter().map(one).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn challenges_are_read_as_the_rfc_has_them() {
        for (value, expected) in [
            ("Basic realm=\"a b\"", "basic realm=a b"),
            ("Basic", "basic"),
            (
                "Bearer realm=\"https://a.b/t\",service=\"s\",scope=\"repository:x:pull,push\"",
                "bearer realm=https://a.b/t service=s scope=repository:x:pull,push",
            ),
            ("BEARER Realm = x , Service=y", "bearer realm=x service=y"),
            ("Basic realm=\"x\", Bearer realm=\"y\"", "basic realm=x; bearer realm=y"),
            ("Negotiate, Basic realm=\"x\"", "negotiate; basic realm=x"),
            ("Basic realm=\"a\\\"b\"", "basic realm=a\"b"),
            ("", "nothing"),
            (" , ", "nothing"),
            ("=x", "nothing"),
            ("realm=\"x\"", "nothing"),
            ("Basic realm=\"x", "nothing"),
            ("Basic realm=\"x\"y", "nothing"),
            ("Basic realm=", "nothing"),
            ("Basic realm=a, realm=b", "nothing"),
            ("Basic@", "nothing"),
        ] {
            assert_eq!(text(value), expected, "{value}");
        }
    }
}
