//! A client against sockets that answer what a test wrote down.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;

use super::*;

/// Answers one connection after the other, each with the next text; gives back what was asked.
fn serve(answers: Vec<String>) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let answer = |answer: String| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            // A TLS handshake begins with 22 and has no lines.
            let plain = reader.fill_buf().unwrap()[0] != 22;
            let mut head = String::new();
            while plain && !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap() > 0 {}
            stream.write_all(answer.as_bytes()).unwrap();
            head.to_ascii_lowercase()
        };
        answers.into_iter().map(answer).collect()
    });
    (format!("http://{address}"), thread)
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

fn http() -> Http {
    Http::new(HttpOptions::default())
}

#[test]
fn a_status_is_an_answer() {
    let (url, server) = serve(vec![answer("404 Not Found", "X-A: b\r\n", "gone")]);
    let response = http().send(Request::new("GET", &format!("{url}/x?y")).header("accept", "a/b")).unwrap();
    assert_eq!((response.status, response.header("x-a"), response.length()), (404, Some("b"), Some(4)));
    assert_eq!(response.into_bytes(4).unwrap().unwrap(), b"gone");
    let asked = server.join().unwrap().remove(0);
    assert!(asked.starts_with("get /x?y http/1.1\r\n") && asked.contains("accept: a/b\r\n"), "{asked}");
    assert!(asked.contains(concat!("user-agent: rbuild/", env!("CARGO_PKG_VERSION"))), "{asked}");
}

#[test]
fn long_and_short_bodies_are_told() {
    let (url, server) = serve(vec![answer("200 OK", "", "12345")]);
    assert!(http().send(Request::new("GET", &url)).unwrap().into_bytes(4).unwrap().is_none());
    server.join().unwrap();
    let cut = answer("200 OK", "", "12345").replace("length: 5", "length: 9");
    let (url, server) = serve(vec![cut]);
    let error = http().send(Request::new("GET", &url)).unwrap().into_bytes(100).unwrap_err();
    assert!(matches!(error.cause, Cause::Body(_)) && error.is_passing(), "{error}");
    server.join().unwrap();
}

#[test]
fn secrets_stay_with_the_first_server() {
    let (other, other_server) = serve(vec![answer("200 OK", "", "there")]);
    let moved = |to: &str| answer("307 Moved", &format!("Location: {to}\r\n"), "");
    let (url, server) = serve(vec![moved("/b"), moved(&format!("{other}/c"))]);
    let secret = [("authorization", "Basic abc".to_owned())];
    let response = http().follow("GET", &format!("{url}/a"), &[("accept", "x/y".into())], &secret).unwrap();
    assert_eq!(response.url, format!("{other}/c"));
    assert_eq!(response.into_bytes(9).unwrap().unwrap(), b"there");
    let asked = server.join().unwrap();
    assert!(asked.iter().all(|asked| asked.contains("basic abc") && asked.contains("x/y")), "{asked:?}");
    let asked = other_server.join().unwrap().remove(0);
    assert!(!asked.contains("authorization") && asked.contains("x/y"), "{asked}");
}

#[test]
fn redirects_come_to_an_end() {
    let again = || answer("302 Found", "Location: /a\r\n", "");
    let (url, server) = serve((0..=REDIRECTS).map(|_| again()).collect());
    let Err(error) = http().follow("GET", &format!("{url}/a"), &[], &[]) else { panic!("it ended") };
    assert_eq!(error.to_string(), format!("{url}/a: more than 10 redirects"));
    server.join().unwrap();
}

#[test]
fn failures_are_said_in_words() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let (no_http, server) = serve(vec!["hello there, this is no HTTP at all\r\n\r\n".into()]);
    let (no_tls, tls_server) = serve(vec![answer("400 Bad Request", "", "plain")]);
    for (url, expected) in [
        (format!("http://{closed}/v2/?a=secret"), format!("http://{closed}/v2/: cannot connect: ")),
        ("http://no.such.host.invalid/x".into(), "there is no host of that name, or no network".into()),
        (format!("{no_http}/"), "the answer is no HTTP".into()),
        (no_tls.replace("http:", "https:"), "it seems to speak plain HTTP".into()),
        ("ftp://localhost/".into(), "this is no URL that can be fetched".into()),
        ("no url".into(), "this is no URL that can be fetched".into()),
    ] {
        let Err(error) = http().send(Request::new("GET", &url)) else { panic!("{url} was answered") };
        assert!(error.to_string().contains(&expected), "{url}: {error}");
    }
    server.join().unwrap();
    tls_server.join().unwrap();
}

#[test]
fn requests_go_through_the_proxy() {
    let (proxy, server) = serve(vec!["HTTP/1.1 403 Forbidden\r\n\r\n".into()]);
    let proxies = vec![("https_proxy".to_owned(), proxy.replace("http://", "http://me:pw@"))];
    let http = Http::new(HttpOptions { proxies, ..HttpOptions::default() });
    let Err(error) = http.send(Request::new("GET", "https://example.org/x")) else { panic!("it passed") };
    assert!(matches!(&error.cause, Cause::Proxy { .. }), "{error}");
    assert!(error.to_string().contains(&format!("the proxy {proxy}: ")), "{error}");
    let asked = server.join().unwrap().remove(0);
    assert!(asked.starts_with("connect example.org:443 http/1.1\r\n"), "{asked}");
    assert!(asked.contains("proxy-authorization: basic bwu6chc="), "{asked}");
}

/// What cannot be reached is the proxy, and says so; one that lets TLS alone pass is told of.
#[test]
fn a_proxy_that_fails_is_named() {
    let get = |variable: &str, proxy: &str, url: &str| {
        let proxies = vec![(variable.to_owned(), proxy.to_owned())];
        let http = Http::new(HttpOptions { proxies, ..HttpOptions::default() });
        http.send(Request::new("GET", url)).map(|response| response.status).unwrap_err().to_string()
    };
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = get("HTTPS_PROXY", &format!("me:pw@{closed}"), "https://example.org/x");
    assert!(error.contains(&format!("the proxy http://{closed}: cannot connect: ")), "{error}");
    let error = get("https_proxy", "http://no.such.host.invalid", "https://example.org/x");
    assert!(error.contains("the proxy http://no.such.host.invalid: there is no host of that name"), "{error}");
    let (proxy, server) = serve(vec!["HTTP/1.1 403 Forbidden\r\n\r\n".into()]);
    let error = get("http_proxy", &proxy, "http://example.org/x");
    assert!(error.contains("port 80") && error.contains("NO_PROXY"), "{error}");
    server.join().unwrap();
}

#[test]
fn certificates_that_cannot_be_used_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.crt");
    for (text, expected) in [(None, "No such file"), (Some("no PEM"), "there is no certificate in it")] {
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        let options = HttpOptions { more_roots: vec![file.clone()], ..HttpOptions::default() };
        let Err(error) = Http::new(options).send(Request::new("GET", "https://localhost:1/")) else { panic!() };
        assert!(error.to_string().contains(expected) && error.to_string().contains("ca.crt"), "{error}");
    }
}

#[test]
fn locations_are_joined_as_browsers_do() {
    for (location, expected) in [
        ("https://b.org/x?y=1", Some("https://b.org/x?y=1")),
        ("//b.org/x", Some("https://b.org/x")),
        ("/x", Some("https://a.org:5/x")),
        ("x?y", Some("https://a.org:5/v2/x?y")),
        ("?y", Some("https://a.org:5/v2/z?y")),
        ("/x#part", Some("https://a.org:5/x")),
        ("/a b\u{e9}", Some("https://a.org:5/a%20b%C3%A9")),
        ("/x?u=http://c", Some("https://a.org:5/x?u=http://c")),
        ("ftp://b.org/", None),
        ("http://", None),
    ] {
        assert_eq!(join("https://a.org:5/v2/z?q", location).as_deref(), expected, "{location}");
    }
    assert!(same_host("https://a.org/x", "https://A.org:443/y"));
    assert!(!same_host("https://a.org/x", "http://a.org/x") && !same_host("http://a:1/", "http://a:2/"));
    assert_eq!(shown("https://u:p@a.org/x?sig=1"), "https://a.org/x");
}
