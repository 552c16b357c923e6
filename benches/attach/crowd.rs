//! How long a caller waits for its answers while another user holds all connections that it may, on both transports.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Result, ensure};
use lab::{Api, Lab, TcpCaller};
use serde_json::json;

use crate::Plan;
use crate::report::{Goal, Samples, Section, Table, ms};
use crate::setup::{self, LIMIT};

const ADDRESS: &str = "127.0.0.1:8090";

/// The caller whose answers are measured, the user of the crowd, and one who is not let in.
const CALLER: u32 = 60_001;
const CROWD: u32 = 60_002;
const STRANGER: u32 = 60_003;

/// The crowd, half of it on each transport: connections that send nothing or half a request, and readers that never read.
const HALF_OPEN: usize = 300;
const READERS: usize = 100;

/// The number of answers in a row; quiet and crowded blocks alternate. A block is over before the crowd is cut.
const BLOCK: usize = 100;

/// How many times longer an answer may take in the crowd.
const MOST: f64 = 3.0;

/// What a reader asks for: the longest list.
const LIST: &[u8] = b"GET /api/v1/volumes HTTP/1.1\r\nHost: localhost\r\n\r\n";

pub(crate) fn bench(plan: Plan) -> Result<Section> {
    let (volumes, blocks) = (plan.count(2000, 200), plan.count(6, 1));
    let lab = setup::lab()?;
    let api = format!("{}[api]\ntcp = \"{ADDRESS}\"\ntcp_uids = [{CALLER}, {CROWD}]\n", setup::CONFIG);
    lab.attachd_config(&api)?;
    let attachd = setup::start(&lab)?;
    let api = attachd.api();
    for _ in 0..volumes {
        setup::intend(&api, &lab.volume().id)?;
    }
    let at: SocketAddr = ADDRESS.parse()?;
    let callers = [("Unix socket", Caller::Unix(api.by(CALLER))), ("TCP", Caller::Tcp(TcpCaller::new(at, CALLER)))];

    let (mut table, mut goals, mut raw) =
        (Table::of_samples("request → answer", &["caller on"]), Vec::new(), Vec::new());
    let tries = AtomicU64::new(0);
    for (transport, caller) in &callers {
        let (mut quiet, mut crowded, mut stranger) = (Samples::default(), Samples::default(), Samples::default());
        for _ in 0..blocks {
            block(&lab, caller, &mut quiet)?;
            let crowd = Crowd::gather(&api.by(CROWD), TcpCaller::new(at, CROWD))?;
            block(&lab, caller, &mut crowded)?;
            drop(crowd);
            while_a_stranger_tries(TcpCaller::new(at, STRANGER), &tries, || block(&lab, caller, &mut stranger))?;
        }
        for (name, samples) in
            [("quiet", &quiet), ("in the crowd", &crowded), ("while a stranger connects in a loop", &stranger)]
        {
            table.samples(name, samples, [(*transport).to_owned()]);
            raw.push((format!("{transport}, {name}"), samples.clone()));
        }
        let ratio = crowded.p50() / quiet.p50();
        goals.push(Goal {
            wanted: format!("in the crowd at most {MOST} × quiet (p50), caller on {transport}"),
            measured: format!("{ratio:.2} × ({} against {} ms)", ms(crowded.p50()), ms(quiet.p50())),
            met: ratio <= MOST,
        });
        let ratio = crowded.p99() / quiet.p99();
        goals.push(Goal {
            wanted: format!("the same for p99, caller on {transport}"),
            measured: format!("{ratio:.2} × ({} against {} ms)", ms(crowded.p99()), ms(quiet.p99())),
            met: ratio <= MOST,
        });
    }
    let about = format!(
        "The crowd is one user: {HALF_OPEN} connections, of which half have sent nothing and half a part of a request, and {READERS} that ask \
         for all {volumes} volumes and never read. Half of each is on the Unix socket and half on TCP; what goes beyond the user's share is \
         refused. The caller is another user and opens a connection for each request: one volume, health, an intent, its withdrawal. The stranger \
         may not use TCP; it connected {} times, from a thread that shares the processors.",
        tries.load(Ordering::Relaxed)
    );
    Ok(Section { title: "Answers while another user holds all that it may", about, tables: vec![table], goals, raw })
}

enum Caller {
    Unix(Api),
    Tcp(TcpCaller),
}

impl Caller {
    fn ask(&self, method: &str, path: &str, body: Option<&str>, status: u16) -> Result<()> {
        let reply = match self {
            Self::Unix(api) => api.request(method, path, body, LIMIT)?,
            Self::Tcp(caller) => caller.request(method, path, &[], body)?,
        };
        ensure!(reply.status == status, "{method} {path}: {} {}", reply.status, reply.text);
        Ok(())
    }
}

fn block(lab: &Lab, caller: &Caller, samples: &mut Samples) -> Result<()> {
    for _ in 0..BLOCK / 4 {
        let volume = lab.volume();
        let body = json!({ "volume_id": volume.id }).to_string();
        let intent = format!("/api/v1/intents/{}", volume.id);
        for (method, path, body, status) in [
            ("POST", "/api/v1/intents", Some(body.as_str()), 201),
            ("GET", &format!("/api/v1/volumes/{}", volume.id), None, 200),
            ("GET", "/api/v1/health", None, 200),
            ("DELETE", &intent, None, 200),
        ] {
            let begun = Instant::now();
            caller.ask(method, path, body, status)?;
            samples.add(begun.elapsed());
        }
    }
    Ok(())
}

/// Connections that are held and not used.
struct Crowd {
    _unix: Vec<UnixStream>,
    _tcp: Vec<TcpStream>,
}

impl Crowd {
    fn gather(api: &Api, tcp: TcpCaller) -> Result<Self> {
        let mut unix = api.connections(READERS / 2, LIMIT)?;
        let mut over_tcp = tcp.connections(READERS / 2)?;
        unix.extend(api.connections(HALF_OPEN / 2, LIMIT)?);
        over_tcp.extend(tcp.connections(HALF_OPEN / 2)?);
        for (n, (unix, tcp)) in unix.iter_mut().zip(&mut over_tcp).enumerate() {
            let part = if n < READERS / 2 { LIST } else { &LIST[..n % 2 * 20] };
            // What was refused is closed already.
            let _ = (unix.write_all(part), tcp.write_all(part));
        }
        Ok(Self { _unix: unix, _tcp: over_tcp })
    }
}

fn while_a_stranger_tries(stranger: TcpCaller, tries: &AtomicU64, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let going = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let trying = scope.spawn(|| -> Result<()> {
            while going.load(Ordering::Relaxed) {
                tries.fetch_add(u64::try_from(stranger.connections(20)?.len())?, Ordering::Relaxed);
            }
            Ok(())
        });
        let worked = work();
        going.store(false, Ordering::Relaxed);
        trying.join().map_err(|_| anyhow::anyhow!("the stranger panicked")).flatten()?;
        worked
    })
}
