//! Which proxy a request goes through.
//!
//! In: the proxy variables, as `(name, value)` pairs in either spelling, and a host. Out: the URL of a proxy, or none.
//! What always holds: this machine itself is never reached through a proxy; NO_PROXY is read as most programs read it
//! (host names with what lies below them, `.name` for what lies below alone, addresses, address blocks, `*`, each with an
//! optional port).

use std::net::IpAddr;

/// The proxy variables, read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Proxies {
    http: Option<String>,
    https: Option<String>,
    except: Vec<Exception>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Exception {
    what: Except,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Except {
    Everything,
    /// The name itself, unless `below` alone, and all names below it.
    Name {
        name: String,
        below: bool,
    },
    Block(IpAddr, u8),
}

impl Proxies {
    pub(super) fn new(variables: &[(String, String)]) -> Self {
        let get = |name: &str| {
            let found = variables.iter().find(|(known, value)| known.eq_ignore_ascii_case(name) && !value.is_empty());
            found.map(|(_, value)| value.clone())
        };
        let all = get("ALL_PROXY");
        Self {
            http: get("HTTP_PROXY").or_else(|| all.clone()),
            https: get("HTTPS_PROXY").or(all),
            except: get("NO_PROXY").iter().flat_map(|list| list.split(',')).filter_map(Exception::parse).collect(),
        }
    }

    /// The proxy for a request to that host.
    pub(super) fn choose(&self, https: bool, host: &str, port: u16) -> Option<&str> {
        let proxy = if https { &self.https } else { &self.http };
        let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
        if is_loopback(&host) || self.except.iter().any(|exception| exception.holds(&host, port)) {
            return None;
        }
        proxy.as_deref()
    }
}

impl Exception {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        if text == "*" {
            return Some(Self { what: Except::Everything, port: None });
        }
        if let Some((address, bits)) = text.split_once('/') {
            let (address, bits): (IpAddr, u8) = (address.parse().ok()?, bits.parse().ok()?);
            return Some(Self { what: Except::Block(address, bits), port: None });
        }
        // The colons of a bare IPv6 address begin no port.
        let (host, port) = match text.rsplit_once(':') {
            _ if text.parse::<IpAddr>().is_ok() => (text.as_str(), None),
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (text.as_str(), None),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = host.parse::<IpAddr>() {
            return Some(Self { what: Except::Block(address, 128), port });
        }
        let host = host.strip_prefix('*').unwrap_or(host);
        let (name, below) = host.strip_prefix('.').map_or((host, false), |name| (name, true));
        (!name.is_empty()).then(|| Self { what: Except::Name { name: name.to_owned(), below }, port })
    }

    fn holds(&self, host: &str, port: u16) -> bool {
        if self.port.is_some_and(|wanted| wanted != port) {
            return false;
        }
        match &self.what {
            Except::Everything => true,
            Except::Block(block, bits) => host.parse().is_ok_and(|address| in_block(address, *block, *bits)),
            Except::Name { name, below } => match host.strip_suffix(name.as_str()) {
                Some("") => !below,
                Some(rest) => rest.ends_with('.'),
                None => false,
            },
        }
    }
}

/// Whether the two addresses agree in the first `bits` bits.
fn in_block(address: IpAddr, block: IpAddr, bits: u8) -> bool {
    let (address, block): (Vec<u8>, Vec<u8>) = match (address, block) {
        (IpAddr::V4(address), IpAddr::V4(block)) => (address.octets().into(), block.octets().into()),
        (IpAddr::V6(address), IpAddr::V6(block)) => (address.octets().into(), block.octets().into()),
        _ => return false,
    };
    let mut left = u32::from(bits);
    address.iter().zip(&block).all(|(one, other)| {
        let take = left.min(8);
        left -= take;
        let mask = 0xff_u32 << (8 - take) & 0xff;
        u32::from(one ^ other) & mask == 0
    })
}

/// Whether a host is this machine by its name alone.
pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        let owned: Vec<_> = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Proxies::new(&owned)
    }

    #[test]
    fn each_scheme_has_its_proxy() {
        let both = proxies(&[("HTTP_PROXY", "http://a:1"), ("https_proxy", "http://b:2")]);
        assert_eq!(both.choose(false, "x.org", 80), Some("http://a:1"));
        assert_eq!(both.choose(true, "x.org", 443), Some("http://b:2"));
        let all = proxies(&[("ALL_PROXY", "http://a:1"), ("HTTPS_PROXY", "")]);
        assert_eq!(all.choose(true, "x.org", 443), Some("http://a:1"));
        assert_eq!(proxies(&[]).choose(true, "x.org", 443), None);
    }

    #[test]
    fn exceptions_are_what_no_proxy_says() {
        for (list, host, port, expected) in [
            ("", "x.org", 443, true),
            ("*", "x.org", 443, false),
            ("x.org", "x.org", 443, false),
            ("X.org", "x.ORG", 443, false),
            ("x.org", "a.x.org", 443, false),
            ("x.org", "ax.org", 443, true),
            (".x.org", "x.org", 443, true),
            (".x.org", "a.x.org", 443, false),
            ("*.x.org", "a.b.x.org", 443, false),
            ("x.org:8443", "x.org", 443, true),
            ("x.org:8443", "x.org", 8443, false),
            (" a , x.org ,", "x.org", 443, false),
            ("10.0.0.0/8", "10.1.2.3", 443, false),
            ("10.0.0.0/8", "11.1.2.3", 443, true),
            ("10.1.2.0/23", "10.1.3.9", 443, false),
            ("10.1.2.0/23", "10.1.4.9", 443, true),
            ("0.0.0.0/0", "9.9.9.9", 443, false),
            ("10.1.2.3", "10.1.2.3", 443, false),
            ("10.1.2.3", "10.1.2.4", 443, true),
            ("fd00::/8", "[fd01::1]", 443, false),
            ("fd00::1", "fd00::1", 443, false),
            ("[fd00::1]:5000", "fd00::1", 5000, false),
            ("[fd00::1]:5000", "fd00::1", 443, true),
            ("", "localhost", 5000, false),
            ("", "127.0.0.9", 5000, false),
            ("", "[::1]", 5000, false),
        ] {
            let found = proxies(&[("HTTPS_PROXY", "http://p"), ("NO_PROXY", list)]);
            assert_eq!(found.choose(true, host, port).is_some(), expected, "{list:?} {host}:{port}");
        }
    }
}
