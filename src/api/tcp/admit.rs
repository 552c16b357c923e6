//! Judges each request over TCP before anything else is done with it: the token, where one is needed, and whether a browser
//! sent it. A page from anywhere can make a browser on this host send requests to a loopback address, with the rights of
//! the browser's user.

use std::net::IpAddr;

use axum::extract::{Extension, Request};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Site;
use crate::api::error::ApiError;
use crate::api::serve::Peer;
use crate::reason::Code;
use crate::remote::RemoteKeys;

/// Headers that browsers send and programs do not. A page cannot leave them out.
const OF_BROWSERS: [&str; 2] = ["origin", "sec-fetch-site"];

/// Lets a request pass, or refuses it before anything is read of its body. The Unix socket's are not judged: its mode has
/// said who may connect, and no browser can.
pub(crate) async fn admit(Extension(peer): Extension<Peer>, request: Request, next: Next) -> Response {
    let judged = peer.site.map_or(Ok(()), |site| judge(request.headers(), request.uri(), &site));
    match judged {
        Ok(()) => next.run(request).await,
        Err(refusal) => {
            let mut response = refusal.into_response();
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            response
        }
    }
}

fn judge(headers: &HeaderMap, uri: &Uri, site: &Site) -> Result<(), ApiError> {
    if let Some(remote) = &site.remote
        && !has_token(headers, remote)
    {
        let text = "the request needs the token of [api] token_file, in the header `Authorization: Bearer <token>`";
        return Err(ApiError::of(Code::TokenNeeded, text));
    }
    if let Some(name) = OF_BROWSERS.into_iter().find(|name| headers.contains_key(*name)) {
        let text =
            format!("browsers are not served, and only they send the header {name}: use attachctl, curl or a program");
        return Err(ApiError::of(Code::FromABrowser, text));
    }
    let hosts = headers.get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or_default());
    let named = uri.authority().map(Authority::as_str);
    for host in hosts.chain(named) {
        if !is_ours(host, site) {
            let text = format!(
                "the request is for another host (Host: {host:.64}): name this one, as localhost, by the address of the \
                 listener ({}), or by a name in its certificate",
                site.address
            );
            return Err(ApiError::of(Code::ForeignHost, text));
        }
    }
    Ok(())
}

fn has_token(headers: &HeaderMap, remote: &RemoteKeys) -> bool {
    let mut told = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(one), None) = (told.next(), told.next()) else { return false };
    let token = one.as_bytes().split_at_checked("Bearer ".len());
    token.is_some_and(|(scheme, token)| scheme.eq_ignore_ascii_case(b"Bearer ") && remote.is_token(token.trim_ascii()))
}

/// Returns whether a `Host` means this host. A name that a stranger's DNS leads here is a stranger's name. The port may
/// be a forwarded one.
fn is_ours(host: &str, site: &Site) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    if host.contains('@') {
        return false;
    }
    let name = authority.host();
    let literal = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    match literal.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback() || ip.to_canonical() == site.address.to_canonical(),
        Err(_) => {
            name.strip_suffix('.').unwrap_or(name).eq_ignore_ascii_case("localhost")
                || site.remote.as_ref().is_some_and(|remote| remote.is_named(name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(headers: &[(&str, &str)], uri: &str) -> Result<(), ApiError> {
        let headers =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap()));
        let site = Site { address: "127.0.0.2".parse().unwrap(), remote: None };
        judge(&headers.collect(), &uri.parse().unwrap(), &site)
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
