//! Without authentication, on loopback: anybody on this machine, but no web page that a browser on it shows.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use http::header::{HOST, ORIGIN};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::{Caller, Refusal};

const SEC_FETCH_SITE: &str = "sec-fetch-site";

pub(super) struct LocalOnly {
    pub(super) allowed_origins: Vec<HeaderValue>,
}

impl LocalOnly {
    pub(super) fn caller(&self, request: &Parts) -> Result<Caller, Refusal> {
        check_host(request)?;
        self.check_page(&request.headers)?;
        Ok(Caller { subject: "local".to_owned(), client: None, scopes: BTreeSet::new() })
    }

    fn check_page(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let refuse = |why| Err(Refusal::Page(StatusCode::FORBIDDEN, why));
        let allowed = match single(headers, &ORIGIN) {
            Ok(None) => false,
            Ok(Some(origin)) if self.allowed_origins.contains(origin) => true,
            Ok(Some(origin)) if is_loopback_origin(origin) => false,
            _ => return refuse("Origin: not of this machine; allowed is a loopback origin, or one of CORS_ORIGINS"),
        };
        // Images, scripts and links of a page send no Origin, but browsers say this much.
        let sites = headers.get_all(SEC_FETCH_SITE);
        let ours = |site: &HeaderValue| matches!(site.as_bytes(), b"same-origin" | b"same-site" | b"none");
        if !allowed && !sites.iter().all(ours) {
            return refuse("Sec-Fetch-Site: another site's page; allowed is one of CORS_ORIGINS");
        }
        Ok(())
    }
}

/// A page whose own name was made to resolve to this machine (DNS rebinding) gives that name here.
fn check_host(request: &Parts) -> Result<(), Refusal> {
    let Ok(Some(host)) = single(&request.headers, &HOST) else {
        return Err(Refusal::Page(StatusCode::BAD_REQUEST, "Host: exactly one is needed"));
    };
    let host = host.to_str().is_ok_and(is_loopback_authority);
    // A target in absolute form comes before the header: RFC 9112, section 3.2.2.
    let target = request.uri.authority().is_none_or(|authority| is_loopback_authority(authority.as_str()));
    if host && target {
        return Ok(());
    }
    Err(Refusal::Page(
        StatusCode::FORBIDDEN,
        "Host: not a loopback name; allowed is localhost, 127.0.0.1 or [::1], with any port",
    ))
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, ()> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (first, None) => Ok(first),
        _ => Err(()),
    }
}

fn is_loopback_origin(origin: &HeaderValue) -> bool {
    let origin = origin.to_str().unwrap_or_default();
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    authority.is_some_and(is_loopback_authority)
}

/// Stricter than URL parsers, which read `[::1]evil.example` as `[::1]`.
fn is_loopback_authority(text: &str) -> bool {
    let is_port = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.rsplit_once(':') {
        Some((host, port)) if is_port(port) => is_loopback_host(host),
        _ => is_loopback_host(text),
    }
}

/// Whether this host of a URL is this machine, whatever a DNS server says.
pub(super) fn is_loopback_host(host: &str) -> bool {
    let v6 = || host.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok();
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
        || v6().is_some_and(|address| address.is_loopback())
}
