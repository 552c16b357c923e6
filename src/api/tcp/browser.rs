//! Keeps browsers out. A page from anywhere can make a browser on this host send requests to a loopback address, with
//! the rights of the browser's user.

use std::net::IpAddr;

use axum::extract::{Extension, Request};
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::api::error::ApiError;
use crate::api::serve::Peer;
use crate::reason::Code;

/// Headers that browsers send and programs do not. A page cannot leave them out.
const OF_BROWSERS: [&str; 2] = ["origin", "sec-fetch-site"];

/// Refuses a browser's request before anything is read of it. Over the Unix socket no browser comes.
pub(crate) async fn refuse(Extension(peer): Extension<Peer>, request: Request, next: Next) -> Response {
    let Some(address) = peer.tcp else { return next.run(request).await };
    match judge(request.headers(), request.uri(), address) {
        Ok(()) => next.run(request).await,
        Err(refusal) => {
            let mut response = refusal.into_response();
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            response
        }
    }
}

fn judge(headers: &HeaderMap, uri: &Uri, address: IpAddr) -> Result<(), ApiError> {
    if let Some(name) = OF_BROWSERS.into_iter().find(|name| headers.contains_key(*name)) {
        let text =
            format!("browsers are not served, and only they send the header {name}: use attachctl, curl or a program");
        return Err(ApiError::of(Code::FromABrowser, text));
    }
    let hosts = headers.get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or_default());
    let named = uri.authority().map(axum::http::uri::Authority::as_str);
    for host in hosts.chain(named) {
        if !is_ours(host, address) {
            let text = format!(
                "the request is for another host (Host: {host:.64}): name this one, as localhost or by the address of \
                 the listener ({address})"
            );
            return Err(ApiError::of(Code::ForeignHost, text));
        }
    }
    Ok(())
}

/// Returns whether a `Host` means this host. A name that a stranger's DNS leads here is a stranger's name. The port may
/// be a forwarded one.
fn is_ours(host: &str, address: IpAddr) -> bool {
    let Ok(authority) = host.parse::<axum::http::uri::Authority>() else { return false };
    if host.contains('@') {
        return false;
    }
    let name = authority.host();
    let literal = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    match literal.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback() || ip.to_canonical() == address.to_canonical(),
        Err(_) => name.strip_suffix('.').unwrap_or(name).eq_ignore_ascii_case("localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(headers: &[(&str, &str)], uri: &str) -> Result<(), ApiError> {
        let headers =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap()));
        judge(&headers.collect(), &uri.parse().unwrap(), "127.0.0.2".parse().unwrap())
    }

    #[test]
    fn a_host_that_means_this_one_is_served() {
        for host in [
            "localhost:8090",
            "LocalHost.",
            "127.0.0.1:8090",
            "127.0.0.1",
            "127.0.0.2:1",
            "[::1]:8090",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(judged(&[("host", host)], "/").is_ok(), "{host}");
        }
        assert!(judged(&[], "/").is_ok(), "HTTP/1.0");
        assert!(judged(&[("host", "localhost")], "http://127.0.0.1:8090/").is_ok());
    }

    #[test]
    fn a_foreign_host_or_a_browser_is_refused() {
        for host in [
            "evil.example",
            "evil.example:8090",
            "localhost.evil.example",
            "localhost:8090@evil.example",
            "192.0.2.1",
            "",
            "a b",
            "127.0.0.1.evil.example",
            "0.0.0.0",
        ] {
            assert!(judged(&[("host", host)], "/").is_err(), "{host}");
        }
        assert!(judged(&[("host", "localhost")], "http://evil.example/").is_err());
        assert!(judged(&[("host", "localhost"), ("host", "evil.example")], "/").is_err());
        for header in OF_BROWSERS {
            assert!(judged(&[("host", "localhost"), (header, "http://localhost:8090")], "/").is_err());
            assert!(judged(&[("host", "localhost"), (header, "null")], "/").is_err());
        }
    }
}
