//! The files of `/etc` that a command finds and no layer holds.
//!
//! In: the command's host name and extra hosts, its network, and this machine's resolver set-up. Out: the texts of
//! `/etc/resolv.conf` and `/etc/hosts`. What always holds: an address that only this machine's own
//! network namespace answers at (systemd-resolved's stub) is replaced by the servers behind it.

use std::io;

use super::{ProcessSpec, network};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved lists the servers that it asks.
const UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";

/// Path and text of each file, the resolver's first. `private` tells of a network of the command's own.
pub(super) fn files(process: &ProcessSpec, private: bool) -> Result<Vec<(String, String)>, (&'static str, io::Error)> {
    let servers = resolv_conf(read)?;
    Ok(vec![
        (RESOLV_CONF.to_owned(), if private { network::resolv_conf(&servers) } else { servers }),
        ("/etc/hosts".to_owned(), hosts(&process.hostname, &process.extra_hosts)),
    ])
}

fn read(path: &'static str) -> io::Result<String> {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The machine's own file, or that of the servers behind its stub; empty where there is none.
fn resolv_conf(read: impl Fn(&'static str) -> io::Result<String>) -> Result<String, (&'static str, io::Error)> {
    let optional = |path| match read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err((path, error)),
    };
    let own = optional(RESOLV_CONF)?.unwrap_or_default();
    if names_stub(&own)
        && let Some(upstream) = optional(UPSTREAM)?
    {
        return Ok(upstream);
    }
    Ok(own)
}

/// Whether a line names systemd-resolved's stub as a server.
fn names_stub(text: &str) -> bool {
    text.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some("nameserver") && words.next() == Some("127.0.0.53")
    })
}

fn hosts(hostname: &str, extra: &[(String, String)]) -> String {
    let own = format!(
        "127.0.0.1\tlocalhost {hostname}\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         ff00::0\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n"
    );
    extra.iter().fold(own, |text, (name, address)| text + address + "\t" + name + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stub_of_systemd_resolved_is_replaced() {
        let stub = "# made by x\nnameserver 127.0.0.53\noptions edns0\n";
        let other = "search a\nnameserver 9.9.9.9 # 127.0.0.53\n";
        for (own, upstream, expected) in [
            (Some(stub), Some("nameserver 1.1.1.1\n"), "nameserver 1.1.1.1\n"),
            (Some(stub), None, stub),
            (Some(other), Some("nameserver 1.1.1.1\n"), other),
            (None, Some("nameserver 1.1.1.1\n"), ""),
        ] {
            let read = |path| {
                let text = if path == RESOLV_CONF { own } else { upstream };
                text.map(str::to_owned).ok_or_else(|| io::ErrorKind::NotFound.into())
            };
            assert_eq!(resolv_conf(read).expect("readable"), expected);
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let refused = resolv_conf(|_| Err(io::ErrorKind::PermissionDenied.into()));
        assert_eq!(refused.expect_err("an error").0, RESOLV_CONF);
    }

    #[test]
    fn hosts_names_the_machine_and_what_was_added() {
        let text = hosts("box", &[("db".to_owned(), "10.0.0.2".to_owned())]);
        assert!(text.starts_with("127.0.0.1\tlocalhost box\n::1\tlocalhost "), "{text}");
        assert!(text.ends_with("\n10.0.0.2\tdb\n"), "{text}");
    }
}
