//! Whether a request comes from where it says: the checks that stand before any session is looked at.
//!
//! - **Host.** A page of another site can have its own name lead to this address (DNS rebinding); then it is that name
//!   which the browser asks for. IP addresses, `localhost` and the hub's names are answered, nothing else.
//! - **Origin.** Cookies go to all ports of a host, and `SameSite` does not tell ports apart: a page of another program
//!   on this machine could write with the operator's session. Whatever changes something must come from an own page:
//!   by its `Origin`, by `Sec-Fetch-Site`, and by a header that no foreign page can send without being asked first.

use std::net::{Ipv4Addr, Ipv6Addr};

use actix_web::http::header::{HOST, HeaderMap, ORIGIN};

use super::denied::Denied;

/// Sent by the console's scripts with everything that changes something. A page of another origin that wants to send it
/// makes the browser ask first (CORS), and nobody says yes.
pub const OWN_HEADER: &str = "x-forebay-console";

/// # Errors
/// `Denied::host`.
pub fn check_host(headers: &HeaderMap, names: &[String]) -> Result<(), Denied> {
    let host = text(headers, HOST.as_str()).ok_or_else(Denied::host)?;
    let name = without_port(host);
    let is_local = name.eq_ignore_ascii_case("localhost");
    let is_own = names.iter().any(|known| known.eq_ignore_ascii_case(name));
    if is_local || is_own || is_address(name) {
        Ok(())
    } else {
        Err(Denied::host())
    }
}

/// Of a request that reads: nothing but the console's own pages asks for data.
///
/// # Errors
/// `Denied::origin`.
pub fn check_reader(headers: &HeaderMap) -> Result<(), Denied> {
    match text(headers, "sec-fetch-site") {
        // Programs other than browsers say nothing.
        None | Some("same-origin" | "none") => Ok(()),
        Some(_) => Err(Denied::origin()),
    }
}

/// Of a request that changes something.
///
/// # Errors
/// `Denied::origin`.
pub fn check_writer(headers: &HeaderMap) -> Result<(), Denied> {
    check_reader(headers)?;
    let (host, origin) = (text(headers, HOST.as_str()), text(headers, ORIGIN.as_str()));
    let origin = origin.and_then(|origin| {
        origin
            .strip_prefix("http://")
            .or_else(|| origin.strip_prefix("https://"))
    });
    let is_own = origin.is_some() && origin == host && headers.contains_key(OWN_HEADER);
    is_own.then_some(()).ok_or_else(Denied::origin)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn without_port(host: &str) -> &str {
    if host.starts_with('[') {
        return host.find(']').map_or(host, |end| &host[..=end]);
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

fn is_address(name: &str) -> bool {
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    name.parse::<Ipv4Addr>().is_ok() || bare.is_some_and(|name| name.parse::<Ipv6Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(
                name.parse::<HeaderName>().unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        headers
    }

    #[test]
    fn only_own_names_are_answered() {
        let names = ["hub.example".to_owned()];
        for host in [
            "localhost",
            "LOCALHOST:9600",
            "127.0.0.1:9600",
            "[::1]:9600",
            "[::1]",
            "10.1.2.3",
            "Hub.Example:443",
        ] {
            assert!(check_host(&headers(&[("host", host)]), &names).is_ok(), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example:9600",
            "hub.example.evil",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil",
            "",
            "[::1",
        ] {
            assert!(check_host(&headers(&[("host", host)]), &names).is_err(), "{host}");
        }
        assert!(check_host(&headers(&[]), &names).is_err());
    }

    #[test]
    fn writers_are_own_pages() {
        let own = [
            ("host", "localhost:9600"),
            ("origin", "http://localhost:9600"),
            ("x-forebay-console", "1"),
        ];
        assert!(check_writer(&headers(&own)).is_ok());
        let with = |name: &str, value: &str| {
            let mut changed = headers(&own);
            changed.insert(
                name.parse::<HeaderName>().unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
            check_writer(&changed).is_ok()
        };
        assert!(with("sec-fetch-site", "same-origin"));
        assert!(
            with("origin", "https://localhost:9600"),
            "TLS ended in front of the hub"
        );
        assert!(!with("sec-fetch-site", "same-site"), "another port of this host");
        assert!(!with("sec-fetch-site", "cross-site"));
        assert!(!with("origin", "http://localhost:3000"));
        assert!(!with("origin", "http://evil.example"));
        assert!(!with("origin", "null"));
        assert!(!with("origin", "localhost:9600"));
        for absent in ["origin", "x-forebay-console", "host"] {
            let mut changed = headers(&own);
            changed.remove(absent);
            assert!(check_writer(&changed).is_err(), "without {absent}");
        }
    }
}
