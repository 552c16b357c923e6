//! The client against a server of a few lines: real sockets, answers by a script.

use super::super::settings::SecretFile;
use super::super::{CloudVolume, TroubleKind, VolumeState};
use super::*;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

const VOLUME: &str = "b3bb9310-1b59-4f62-97e8-cefffdfe3804";
const VM: &str = "0d2f6d8e-58a3-4d20-9f3c-3c1f2a7d0c11";

/// What the server does with a request.
enum Act {
    /// Answers with this status, these headers and this body.
    Say(u16, &'static str, String),
    /// Takes the request and hangs up.
    Cut,
    /// Hangs up in the middle of the answer.
    CutAnswer,
    /// Says nothing, until the client has gone.
    BeSilent,
}

/// Answers requests in turn, and tells what they were: the request line, the headers and the body as text.
struct Server {
    url: String,
    requests: mpsc::Receiver<String>,
}

impl Server {
    fn start(script: Vec<Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (tell, requests) = mpsc::channel();
        thread::spawn(move || {
            for act in script {
                let (stream, _) = listener.accept().unwrap();
                let _ = tell.send(request(&stream));
                answer(stream, act);
            }
        });
        Self { url, requests }
    }

    fn got(&self) -> Vec<String> {
        self.requests.try_iter().collect()
    }
}

fn request(stream: &TcpStream) -> String {
    let mut reader = BufReader::new(stream);
    let (mut text, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        text.push_str(&line);
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    text + &String::from_utf8(body).unwrap()
}

fn answer(mut stream: TcpStream, act: Act) {
    match act {
        Act::Say(status, headers, body) => {
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
            let _ = stream.write_all((head + &body).as_bytes());
        }
        Act::Cut => {}
        Act::CutAnswer => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"listvol");
        }
        Act::BeSilent => {
            let _ = stream.read_to_end(&mut Vec::new());
        }
    }
}

fn ok(body: impl Into<String>) -> Act {
    Act::Say(200, "", body.into())
}

fn listed() -> Act {
    ok(format!(
        "{{\"listvolumesresponse\":{{\"count\":1,\"volume\":[{{\"id\":\"{VOLUME}\",\"state\":\"Ready\",\"type\":\"DATADISK\"}}]}}}}"
    ))
}

fn not_let_in() -> Act {
    let text = "unable to verify user credentials and/or request signature";
    Act::Say(401, "", format!("{{\"listvolumesresponse\":{{\"errorcode\":401,\"errortext\":\"{text}\"}}}}"))
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Gives a file a time of long ago, so that it does not look as if somebody was replacing it.
fn write_long_ago(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
}

/// A client of that address, with keys of its own.
struct Caller {
    dir: tempfile::TempDir,
    client: Client,
}

impl Caller {
    fn of(url: &str) -> Self {
        Self::with(url, |_| ())
    }

    fn with(url: &str, change: impl FnOnce(&mut CloudSettings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("key", "THE-KEY\n"), ("secret", "THE-SECRET\n")] {
            write(&dir.path().join(name), text);
        }
        let mut settings = CloudSettings::new(url.parse().unwrap());
        settings.key_file = SecretFile::Named(dir.path().join("key"));
        settings.secret_file = SecretFile::Named(dir.path().join("secret"));
        change(&mut settings);
        Self { client: Client::new(settings), dir }
    }

    async fn volume(&self) -> Result<Option<CloudVolume>, CallError> {
        self.client.volume(VOLUME.parse().unwrap()).await
    }

    async fn detach(&self) -> Result<Started, CallError> {
        self.client.detach(VM.parse().unwrap(), VOLUME.parse().unwrap()).await
    }
}

#[tokio::test]
async fn a_call_is_a_signed_post_and_the_answer_is_read() {
    let server = Server::start(vec![listed()]);
    let caller = Caller::of(&server.url);
    let volume = caller.volume().await.unwrap().unwrap();
    assert_eq!((volume.id.to_string(), volume.state), (VOLUME.to_owned(), VolumeState::Ready));
    let request = server.got().remove(0);
    assert!(request.starts_with("POST /client/api HTTP/1.1\r\n"), "{request}");
    for part in ["apikey=THE-KEY&", "command=listVolumes&", "response=json&", "signatureversion=3&signature="] {
        assert!(request.contains(part), "{part}: {request}");
    }
    assert!(request.contains("application/x-www-form-urlencoded") && !request.contains("THE-SECRET"), "{request}");
    let seen = caller.client.has_seen();
    assert!(seen.last_answer.is_some() && seen.trouble.is_none());
    assert!(!format!("{:?} {seen:?}", caller.client).contains("THE-"), "no key is shown");
}

/// Reading is repeated after a connection that failed, and a change never is.
#[tokio::test]
async fn only_what_reads_is_sent_again() {
    let server = Server::start(vec![Act::Cut, Act::CutAnswer, listed()]);
    assert!(Caller::of(&server.url).volume().await.unwrap().is_some());
    assert_eq!(server.got().len(), 3);

    for act in [Act::Cut, Act::CutAnswer] {
        let server = Server::start(vec![act, ok("{\"detachvolumeresponse\":{}}")]);
        let error = Caller::of(&server.url).detach().await.unwrap_err();
        assert!(matches!(error, CallError::Unreachable { sent: Sent::Unclear, .. }), "{error}");
        assert!(error.may_be_done());
        assert_eq!(server.got().len(), 1, "sent once");
    }
}

#[tokio::test]
async fn what_found_no_connection_was_surely_not_sent() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    for url in [format!("http://{address}"), "http://no-such-host.invalid".to_owned()] {
        let caller = Caller::of(&url);
        let error = caller.detach().await.unwrap_err();
        assert!(matches!(error, CallError::Unreachable { sent: Sent::No, .. }), "{url}: {error}");
        assert_eq!(caller.client.has_seen().trouble.unwrap().kind, TroubleKind::Unreachable);
    }
}

/// A server that takes connections and speaks no TLS, and one that never says a word.
#[tokio::test]
async fn a_tls_handshake_that_fails_has_sent_nothing() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let answering = thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got);
        got
    });
    let error = Caller::of(&format!("https://{address}")).detach().await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable { sent: Sent::No, .. }), "{error}");
    let got = String::from_utf8_lossy(&answering.join().unwrap()).into_owned();
    assert!(!got.contains("detachVolume") && !got.contains("THE-KEY"), "{got}");
}

#[tokio::test]
async fn a_server_that_says_nothing_is_waited_for_as_long_as_the_settings_say() {
    let server = Server::start(vec![Act::BeSilent, Act::BeSilent]);
    let caller = Caller::with(&server.url, |settings| settings.timeout = Duration::from_secs(1));
    let begun = Instant::now();
    for error in [caller.detach().await.unwrap_err(), caller.volume().await.unwrap_err()] {
        assert!(matches!(error, CallError::Unreachable { sent: Sent::Unclear, .. }), "{error}");
        assert!(error.to_string().contains("within 1 s"), "{error}");
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "time that is over is not given again: {:?}", begun.elapsed());
    assert_eq!(server.got().len(), 2);
}

#[tokio::test]
async fn an_answer_without_end_is_cut() {
    let server = Server::start(vec![ok(" ".repeat(5 << 20)), ok(" ".repeat(5 << 20)), ok(" ".repeat(5 << 20))]);
    let error = Caller::of(&server.url).volume().await.unwrap_err();
    assert!(error.to_string().contains("longer than"), "{error}");
}

#[tokio::test]
async fn no_redirect_is_followed() {
    let other = Server::start(vec![listed()]);
    let to = format!("Location: {}/client/api\r\n", other.url);
    let server = Server::start(vec![Act::Say(307, to.leak(), String::new())]);
    let error = Caller::of(&server.url).volume().await.unwrap_err();
    assert!(matches!(&error, CallError::NotUnderstood { what } if what.contains(&other.url)), "{error}");
    assert_eq!(other.got(), Vec::<String>::new());
}

#[tokio::test]
async fn a_limit_of_calls_is_told_with_how_long_to_wait() {
    let server = Server::start(vec![Act::Say(429, "Retry-After: 17\r\n", "slow down".to_owned())]);
    let error = Caller::of(&server.url).volume().await.unwrap_err();
    assert_eq!(error, CallError::Throttled { after: Duration::from_secs(17) });
    assert_eq!(server.got().len(), 1);
}

/// Keys that are replaced while a call is on its way: the call is made once more with the new ones, and then it is enough.
#[tokio::test]
async fn keys_that_have_changed_meanwhile_are_tried_once_more_and_the_same_ones_are_not() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let caller = Caller::of(&format!("http://{}", listener.local_addr().unwrap()));
    let (key, secret) = (caller.dir.path().join("key"), caller.dir.path().join("secret"));
    let old = [key.clone(), secret.clone()];
    let server = thread::spawn(move || {
        let mut keys = Vec::new();
        for (round, act) in [not_let_in(), listed(), not_let_in()].into_iter().enumerate() {
            let (stream, _) = listener.accept().unwrap();
            let got = request(&stream);
            keys.push(got[got.find("apikey=").unwrap()..].split('&').next().unwrap().to_owned());
            if round == 0 {
                write(&key, "NEW-KEY");
                write(&secret, "NEW-SECRET");
            }
            answer(stream, act);
        }
        keys
    });
    assert!(caller.volume().await.unwrap().is_some(), "the new keys were used at once");
    for path in &old {
        write_long_ago(path);
    }
    let error = caller.volume().await.unwrap_err();
    assert!(matches!(&error, CallError::Refused(refusal) if refusal.kind == RefusalKind::NotLetIn), "{error}");
    assert!(!error.may_be_done() && !error.to_string().contains("-KEY"), "{error}");
    assert_eq!(server.join().unwrap(), ["apikey=THE-KEY", "apikey=NEW-KEY", "apikey=NEW-KEY"]);
    assert_eq!(caller.client.has_seen().trouble.unwrap().kind, TroubleKind::NotLetIn);
}

#[tokio::test]
async fn without_usable_keys_nothing_is_sent_and_the_file_is_named() {
    let server = Server::start(vec![listed()]);
    let caller = Caller::of(&server.url);
    let secret = caller.dir.path().join("secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    let error = caller.volume().await.unwrap_err();
    assert!(matches!(&error, CallError::NotAble { why } if why.contains("/secret") && why.contains("0640")), "{error}");
    assert_eq!(server.got(), Vec::<String>::new());
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(caller.volume().await.is_ok(), "the control: it heals by itself");
}

#[tokio::test]
async fn what_cloudstack_does_not_know_is_none_and_what_it_refuses_is_said() {
    let gone = || {
        let text = "Unable to execute API command listvolumes due to invalid value. … or entity does not exist";
        Act::Say(
            431,
            "",
            format!("{{\"listvolumesresponse\":{{\"errorcode\":431,\"cserrorcode\":9999,\"errortext\":\"{text}\"}}}}"),
        )
    };
    let job = "{\"queryasyncjobresultresponse\":{\"errorcode\":431,\"errortext\":\"… entity does not exist …\"}}";
    let refused = "{\"detachvolumeresponse\":{\"errorcode\":531,\"errortext\":\"no permission\"}}";
    let server = Server::start(vec![
        ok("{\"listvolumesresponse\":{}}"),
        gone(),
        Act::Say(431, "", job.to_owned()),
        Act::Say(531, "", refused.to_owned()),
    ]);
    let caller = Caller::of(&server.url);
    assert_eq!(caller.volume().await.unwrap(), None);
    assert_eq!(caller.volume().await.unwrap(), None);
    assert_eq!(caller.client.job(VM.parse().unwrap()).await.unwrap(), None);
    let error = caller.detach().await.unwrap_err();
    assert!(matches!(&error, CallError::Refused(refusal) if refusal.kind == RefusalKind::NotAllowed), "{error}");
    assert_eq!(caller.client.has_seen().last_refusal.unwrap().1, "detachVolume");
}

/// A server that does not know a filter lists everything.
#[tokio::test]
async fn a_volume_that_was_not_asked_for_is_not_taken_for_the_one_that_was() {
    let server = Server::start(vec![listed(), listed(), listed()]);
    let caller = Caller::of(&server.url);
    let other = "11111111-1b59-4f62-97e8-cefffdfe3804".parse().unwrap();
    assert_eq!(caller.client.volume(other).await.unwrap(), None);
    assert_eq!(caller.client.volume_named("mine").await.unwrap(), None);
    assert_eq!(caller.client.volumes_of(&VM.parse().unwrap()).await.unwrap(), []);
}

#[tokio::test]
async fn the_proxy_is_asked_and_nobody_else() {
    let proxy = Server::start(vec![listed()]);
    let caller = Caller::with("http://cloud.invalid/client/api", |settings| {
        settings.proxy = Some(proxy.url.parse().unwrap());
    });
    assert!(caller.volume().await.unwrap().is_some());
    assert!(proxy.got()[0].starts_with("POST http://cloud.invalid/client/api HTTP/1.1\r\n"));
    // Through TLS: the proxy is asked for a way, and sees no more.
    let proxy = Server::start(vec![Act::Say(403, "", String::new())]);
    let caller = Caller::with("https://cloud.invalid/client/api", |settings| {
        settings.proxy = Some(proxy.url.parse().unwrap());
    });
    let error = caller.detach().await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable { sent: Sent::No, .. }), "{error}");
    let got = proxy.got().remove(0);
    assert!(got.starts_with("CONNECT cloud.invalid:443 ") && !got.contains("THE-KEY"), "{got}");
}

#[tokio::test]
async fn other_settings_hold_from_the_next_call_on() {
    let (old, new) = (Server::start(vec![listed()]), Server::start(vec![listed()]));
    let caller = Caller::of(&old.url);
    caller.volume().await.unwrap();
    let mut settings = caller.client.parts().settings.clone();
    settings.url = new.url.parse().unwrap();
    caller.client.change(settings);
    caller.volume().await.unwrap();
    assert_eq!((old.got().len(), new.got().len()), (1, 1));
}
