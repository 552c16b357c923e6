//! Tests how the lab starts, follows and kills a daemon, with a stand-in: this test binary itself, which gives the
//! few answers that the tests need.

use anyhow::Result;
use lab::{Api, Attachd, AttachdOptions, Lab};
use serde_json::json;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::FromRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::Duration;

const STAND_IN: &str = "LAB_STAND_IN";
const SOON: Duration = Duration::from_secs(20);

fn options() -> AttachdOptions {
    AttachdOptions {
        args: ["--exact", "stand_in", "--nocapture"].map(str::to_owned).to_vec(),
        env: vec![(STAND_IN.into(), "1".into())],
        ..Default::default()
    }
}

fn start(lab: &Lab, change: impl FnOnce(&mut AttachdOptions)) -> Result<Attachd> {
    let mut options = options();
    change(&mut options);
    lab.not_restarted("the stand-in has no world");
    lab.attachd_start(&std::env::current_exe()?, &options)
}

#[test]
fn it_runs_as_its_own_user_and_answers() -> Result<()> {
    let lab = Lab::new();
    lab.attachd_config("# nothing\n")?;
    let mut attachd = start(&lab, |_| ())?;
    let status = fs::read_to_string(format!("/proc/{}/status", attachd.pid()?))?;
    for line in ["Uid:\t61801\t61801\t61801\t61801", "Groups:\t\n", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(status.replace(" \n", "\n").contains(line), "{line:?} not in {status}");
    }
    let api = attachd.api();
    assert_eq!(api.get("/api/v1/health")?.expect(200)?, json!({"status": "healthy"}));
    assert_eq!(api.post("/echo", &json!({"a": 1}))?.expect(200)?, json!({"a": 1}));
    assert_eq!(api.delete("/nothing")?.status, 404);
    assert_eq!(api.wait_volume("v", "ready", Duration::from_secs(1))?["state"], "ready");
    assert!(api.wait_volume("v", "lost", Duration::from_secs(1)).is_err());
    assert!(api.raw(b"nonsense\r\n\r\n", SOON)?.starts_with(b"HTTP/1.1 400"));
    assert!(attachd.stderr_text().contains("stand-in listens"));
    assert!(!attachd.terminate()?.success());
    Ok(())
}

#[test]
fn it_follows_events() -> Result<()> {
    let lab = Lab::new();
    let attachd = start(&lab, |_| ())?;
    let mut events = attachd.api().events()?;
    let event = events.wait_for(|e| e["n"] == 3, SOON)?;
    assert_eq!(event, json!({"n": 3}));
    assert_eq!(events.next(Duration::from_millis(50))?, None);
    Ok(())
}

#[test]
fn it_is_killed_and_comes_back_over_its_old_socket() -> Result<()> {
    let lab = Lab::new();
    for _ in 0..5 {
        let mut attachd = start(&lab, |_| ())?;
        attachd.sigstop()?;
        attachd.sigcont()?;
        attachd.kill9()?;
        assert!(fs::exists(lab::attachd::SOCKET)? && attachd.api().get("/api/v1/health").is_err());
    }
    Ok(())
}

#[test]
fn a_wrapper_does_not_hide_its_pid() -> Result<()> {
    let lab = Lab::new();
    let trace = lab.dir().join("trace");
    let wrapper = ["strace", "-f", "-o", &trace.to_string_lossy()].map(str::to_owned).to_vec();
    let mut attachd = start(&lab, |o| o.wrapper = wrapper)?;
    let pid = attachd.pid()?;
    assert!(fs::read_to_string(format!("/proc/{pid}/status"))?.contains("Uid:\t61801"));
    attachd.kill9()?;
    assert!(fs::read_to_string(trace)?.contains("attachd.sock"));
    Ok(())
}

#[test]
fn a_start_that_fails_says_why() {
    let lab = Lab::new();
    let failed = start(&lab, |o| o.env.push((STAND_IN.into(), "die".into()))).expect_err("it dies");
    assert!(failed.to_string().contains("stand-in dies"), "{failed:#}");
}

#[test]
fn a_socket_is_held_over_a_restart_and_ready_is_heard() -> Result<()> {
    let lab = Lab::new();
    let (socket, notify) = (lab.held_socket()?, lab.notify_socket()?);
    let mut options = options();
    options.env.push(notify.env());
    lab.not_restarted("the stand-in has no world");
    for _ in 0..2 {
        let mut attachd = lab.attachd_start_activated(&std::env::current_exe()?, &options, &socket)?;
        notify.wait_for("READY=1", SOON)?;
        attachd.kill9()?;
    }
    Ok(())
}

/// The stand-in; an empty test when it is not started as one.
#[test]
fn stand_in() -> Result<()> {
    match std::env::var(STAND_IN).as_deref() {
        Ok("die") => {
            eprintln!("stand-in dies");
            std::process::exit(3);
        }
        Ok(_) => {}
        Err(_) => return Ok(()),
    }
    let listener = if std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string()) {
        // SAFETY: the process that sets LISTEN_PID to our pid passes descriptor 3 to us.
        unsafe { UnixListener::from_raw_fd(3) }
    } else {
        let _ = fs::remove_file(lab::attachd::SOCKET);
        UnixListener::bind(lab::attachd::SOCKET)?
    };
    if let Some(notify) = std::env::var_os("NOTIFY_SOCKET") {
        UnixDatagram::unbound()?.send_to(b"READY=1\nSTATUS=fine", notify)?;
    }
    eprintln!("stand-in listens");
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || serve(stream));
    }
    Ok(())
}

fn serve(stream: UnixStream) -> Result<()> {
    let mut out = stream.try_clone()?;
    let mut lines = BufReader::new(stream);
    let mut read = || -> Result<String> {
        let mut line = String::new();
        lines.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    };
    let request = read()?;
    let mut length = 0;
    loop {
        let header = read()?;
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("Content-Length: ") {
            length = value.parse()?;
        }
    }
    let mut body = vec![0; length];
    std::io::Read::read_exact(&mut lines, &mut body)?;
    let (status, body) = match request.as_str() {
        "GET /api/v1/health HTTP/1.1" => ("200 OK", br#"{"status": "healthy"}"#.to_vec()),
        "POST /echo HTTP/1.1" => ("200 OK", body),
        r if r.starts_with("GET /api/v1/volumes/v?wait=") => ("200 OK", br#"{"state": "ready"}"#.to_vec()),
        "GET /api/v1/events HTTP/1.1" => return events(out),
        "nonsense" => ("400 Bad Request", Vec::new()),
        _ => ("404 Not Found", Vec::new()),
    };
    write!(out, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    Ok(out.write_all(&body)?)
}

/// Sends three events in chunks that end within events, and then nothing.
fn events(mut out: UnixStream) -> Result<()> {
    write!(out, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    for chunk in
        [": hello\n\nevent: a\ndata: {\"n\"", ": 1}\n\ndata: {\"n\": 2}\n\n", "id: 7\ndata: {\"n\":\ndata: 3}\n\n"]
    {
        write!(out, "{:x}\r\n{chunk}\r\n", chunk.len())?;
    }
    std::thread::park();
    Ok(())
}

/// A client without a daemon gets a clear error.
#[test]
fn no_daemon_is_a_clear_error() {
    let failed = Api::new("/nowhere.sock").get("/").expect_err("nobody is there");
    assert!(format!("{failed:#}").contains("connecting to /nowhere.sock"));
}
