//! A client of the API.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Method, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::failure::{Failure, UNREACHABLE};
use super::sse::{Message, Parser};
use crate::identity::VolumeId;
use crate::reason::Code;

/// The time limit for an answer, if the request does not ask attachd to wait.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// HTTP needs a host name; the socket decides which server answers.
const BASE: &str = "http://attachd/api/v1/";

/// A query string, as pairs of name and value.
pub(super) type Query<'a> = &'a [(&'a str, String)];

/// A request.
struct ApiRequest<'a> {
    method: Method,
    path: &'a str,
    query: Query<'a>,
    body: Option<String>,
    /// The caller's idempotency key for the operation.
    key: Option<&'a str>,
}

impl<'a> ApiRequest<'a> {
    fn of(method: Method, path: &'a str, query: Query<'a>) -> Self {
        Self { method, path, query, body: None, key: None }
    }
}

/// The client of one socket.
pub(super) struct ApiClient {
    http: reqwest::Client,
    socket: PathBuf,
}

/// An answer of attachd.
pub(super) struct ApiAnswer {
    /// The HTTP status code.
    pub(super) status: u16,
    /// The body as attachd sent it.
    pub(super) text: String,
}

impl ApiAnswer {
    /// Reads the body.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        understood(&self.text)
    }

    fn success(self) -> Result<Self, Failure> {
        if (200..300).contains(&self.status) { Ok(self) } else { Err(Failure::from_answer(self.status, &self.text)) }
    }
}

impl ApiClient {
    /// Makes a client for this socket. Opens nothing yet.
    pub(super) fn new(socket: &Path) -> Result<Self, Failure> {
        // Each request has a new connection, because attachd closes idle ones. No certificate is ever checked, so the system's
        // authorities are not read.
        let http = reqwest::Client::builder().unix_socket(socket).pool_max_idle_per_host(0).tls_certs_only([]).build();
        let http = http.map_err(|error| Failure::new(Code::NoClient, format!("attachctl cannot start: {error}")))?;
        Ok(Self { http, socket: socket.to_owned() })
    }

    /// Sends a GET request; an error status is a failure.
    pub(super) async fn get(&self, path: &str, query: Query<'_>) -> Result<ApiAnswer, Failure> {
        self.get_any(path, query, Duration::ZERO).await?.success()
    }

    /// Sends a GET request and returns an answer with any status. attachd may delay its answer by `wait`.
    pub(super) async fn get_any(&self, path: &str, query: Query<'_>, wait: Duration) -> Result<ApiAnswer, Failure> {
        self.ask(ApiRequest::of(Method::GET, path, query), ANSWER_LIMIT + wait).await
    }

    /// Sends a POST request.
    pub(super) async fn post(&self, path: &str, body: Option<&impl Serialize>) -> Result<ApiAnswer, Failure> {
        self.post_keyed(path, body, None).await
    }

    /// Sends a POST request, with an idempotency key if there is one.
    pub(super) async fn post_keyed(
        &self,
        path: &str,
        body: Option<&impl Serialize>,
        key: Option<&str>,
    ) -> Result<ApiAnswer, Failure> {
        let body = body.map(|body| json!(body).to_string());
        self.ask(ApiRequest { body, key, ..ApiRequest::of(Method::POST, path, &[]) }, ANSWER_LIMIT).await?.success()
    }

    /// Sends a DELETE request.
    pub(super) async fn delete(&self, path: &str, query: Query<'_>) -> Result<ApiAnswer, Failure> {
        self.ask(ApiRequest::of(Method::DELETE, path, query), ANSWER_LIMIT).await?.success()
    }

    /// Reads one volume.
    pub(super) async fn volume(&self, volume: VolumeId) -> Result<ApiAnswer, Failure> {
        self.get(&format!("volumes/{volume}"), &[]).await
    }

    /// Subscribes to events of one volume or of all. No event after this function returns is left out.
    pub(super) async fn events(&self, volume: Option<VolumeId>) -> Result<EventStream, Failure> {
        let query: Vec<_> = volume.map(|volume| ("volume_id", volume.to_string())).into_iter().collect();
        let response = self.within(ANSWER_LIMIT, self.send(ApiRequest::of(Method::GET, "events", &query))).await?;
        if response.status().is_success() {
            return Ok(EventStream { response, parser: Parser::default() });
        }
        let status = response.status().as_u16();
        let text = self.within(ANSWER_LIMIT, response.text()).await?;
        Err(Failure::from_answer(status, &text))
    }

    async fn ask(&self, request: ApiRequest<'_>, limit: Duration) -> Result<ApiAnswer, Failure> {
        let answer = async {
            let response = self.send(request).await?;
            Ok(ApiAnswer { status: response.status().as_u16(), text: response.text().await? })
        };
        self.within(limit, answer).await
    }

    async fn send(&self, request: ApiRequest<'_>) -> Result<Response, reqwest::Error> {
        let ApiRequest { method, path, query, body, key } = request;
        let address = format!("{BASE}{path}");
        // Sending the request reports a malformed address.
        let mut request = match Url::parse_with_params(&address, query) {
            Ok(url) if !query.is_empty() => self.http.request(method, url),
            _ => self.http.request(method, address),
        };
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        match body {
            Some(body) => request.header("content-type", "application/json").body(body).send().await,
            None => request.send().await,
        }
    }

    async fn within<T>(
        &self,
        limit: Duration,
        answer: impl Future<Output = Result<T, reqwest::Error>>,
    ) -> Result<T, Failure> {
        if let Ok(answer) = tokio::time::timeout(limit, answer).await {
            return answer.map_err(|error| self.unreachable(&error));
        }
        let text =
            format!("attachd at {} gave no answer within {} s: {ADVICE}", self.socket.display(), limit.as_secs());
        Err(Failure::with(UNREACHABLE, Code::NoAnswer, text, json!({ "socket": self.socket })))
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let causes = || std::iter::successors(error.source(), |error| (*error).source());
        let cause = causes().find_map(|cause| cause.downcast_ref::<io::Error>());
        let text = match cause {
            Some(cause) if error.is_connect() => refused(&self.socket, cause),
            _ => {
                let last = causes().last().map_or_else(|| error.to_string(), ToString::to_string);
                format!(
                    "attachd at {} closed the connection before it had answered ({last}): {ADVICE}",
                    self.socket.display()
                )
            }
        };
        Failure::with(UNREACHABLE, Code::Unreachable, text, json!({ "socket": self.socket }))
    }
}

/// What to do when attachd does not answer.
const ADVICE: &str = "look at `systemctl status attachd` and `journalctl -u attachd`";

/// Explains why the socket cannot be connected to, and what to do.
fn refused(socket: &Path, cause: &io::Error) -> String {
    let socket = socket.display();
    match cause.kind() {
        io::ErrorKind::NotFound => format!(
            "there is no socket {socket}: attachd does not run, or listens elsewhere. Check `systemctl status \
             attachd`, or name the socket of its configuration ([api] socket) with --socket"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "this user may not use {socket}: only root and the group attachd may. See `id`; `usermod -aG attachd USER` \
             as root adds a user, from the next login on"
        ),
        io::ErrorKind::ConnectionRefused => format!(
            "nobody listens on {socket}: attachd has ended and left its socket behind. Check `systemctl status attachd` \
             and `journalctl -u attachd`"
        ),
        _ => format!("attachd cannot be reached on {socket}: {cause}. Check `systemctl status attachd`"),
    }
}

/// A stream of events.
pub(super) struct EventStream {
    response: Response,
    parser: Parser,
}

impl EventStream {
    /// Returns the next message; `None` at the end, or when the connection breaks.
    pub(super) async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.parser.next() {
                return Some(message);
            }
            let piece = self.response.chunk().await.ok().flatten()?;
            self.parser.push(&piece);
        }
    }
}

impl Message {
    /// Reads the message's data.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        understood(&self.data)
    }
}

fn understood<T: DeserializeOwned>(text: &str) -> Result<T, Failure> {
    serde_json::from_str(text).map_err(Failure::not_understood)
}
