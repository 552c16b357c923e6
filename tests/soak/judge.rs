//! The client that connects at random moments, and the one that reads every page of the API.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use lab::NbdClient;
use serde_json::Value;

use crate::ledger::{Known, Ledger};

const SERVER: &str = "127.0.0.1:10809";

/// The number of bytes read at one time.
const PIECE: u32 = 1 << 18;

/// States in which no new client may be let in.
const CLOSED: [&str; 5] = ["waiting", "lost", "refused", "expired", "detaching"];

/// The result of a connection.
enum Met {
    /// The volume's own bytes.
    Served,
    /// A failed handshake or read.
    Refused(String),
    /// A result that must never occur.
    Wrong(String),
}

/// Checks one volume after the other until the soak is over.
pub(crate) fn follow(ledger: &Ledger, mut random: fastrand::Rng) {
    while ledger.goes_on() {
        std::thread::sleep(Duration::from_millis(random.u64(0..40)));
        let Some(known) = ledger.any(&mut random) else { continue };
        // No client connects while the lab pulls the disk, because then the pull would fail.
        let Ok(_connected) = known.gate.try_read() else { continue };
        let quiet = ledger.quiet(&known);
        let before = state(ledger, &known);
        let met = meet(&known, &mut random);
        let after = state(ledger, &known);
        let still = quiet.still();
        if let Err(why) = verdict(ledger, before.as_ref(), &met, after.as_ref(), still) {
            ledger.fail(format_args!("{}: {why}\nbefore {before:?}\nafter  {after:?}", known.volume.id));
        }
    }
}

/// A state, and since when. If it is equal before and after, it did not change in between.
type Standing = (String, String);

fn state(ledger: &Ledger, known: &Known) -> Option<Standing> {
    let begun = Instant::now();
    let reply = ledger.api.get(&format!("/api/v1/volumes/{}", known.volume.id)).ok()?;
    ledger.most("slowest answer ms", u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX));
    let text = |field: &str| reply.json[field].as_str().map(str::to_owned);
    if reply.status == 404 {
        Some(("unknown".to_owned(), String::new()))
    } else {
        Some((text("state")?, text("since")?))
    }
}

fn verdict(
    ledger: &Ledger,
    before: Option<&Standing>,
    met: &Met,
    after: Option<&Standing>,
    quiet: bool,
) -> Result<(), String> {
    let lasted = before.filter(|before| Some(*before) == after).map(|(state, _)| &**state);
    let counted = match (met, lasted) {
        (Met::Wrong(what), _) => return Err(what.clone()),
        (Met::Refused(why), Some("ready")) if quiet => {
            return Err(format!("it was ready all the time, and yet: {why}"));
        }
        (Met::Served, Some(state)) if CLOSED.contains(&state) => {
            return Err(format!("it was {state} all the time, and yet served"));
        }
        (Met::Served, Some("ready")) => "ready and served",
        (Met::Refused(_), Some("ready")) => "ready and disturbed",
        (Met::Refused(_), Some(_)) => "not ready and not served",
        _ => "moved meanwhile",
    };
    ledger.count(counted);
    Ok(())
}

fn meet(known: &Known, random: &mut fastrand::Rng) -> Met {
    let mut client = match NbdClient::connect(SERVER, &known.volume.export()) {
        Ok(client) => client,
        Err(error) => return Met::Refused(format!("{error:#}")),
    };
    if client.size() != known.size {
        return Met::Wrong(format!("served with {} bytes, the disk has {}", client.size(), known.size));
    }
    for _ in 0..3 {
        match compare(&mut client, known, random.u64(0..known.size)) {
            Met::Served => {}
            other => return other,
        }
    }
    Met::Served
}

/// Reads a piece and compares it.
pub(crate) fn compare_piece(client: &mut NbdClient, known: &Known, at: u64) -> Result<bool, String> {
    match compare(client, known, at) {
        Met::Served => Ok(true),
        Met::Refused(why) => Err(why),
        Met::Wrong(_) => Ok(false),
    }
}

fn compare(client: &mut NbdClient, known: &Known, at: u64) -> Met {
    let length = u32::try_from(known.size - at).unwrap_or(PIECE).min(PIECE);
    let data = match client.read(at, length) {
        Ok(data) => data,
        Err(error) => return Met::Refused(format!("reading {length} bytes at {at}: {error:#}")),
    };
    let mut expected = vec![0; data.len()];
    File::open(&known.file).and_then(|file| file.read_exact_at(&mut expected, at)).unwrap();
    if data == expected { Met::Served } else { Met::Wrong(format!("WRONG BYTES within {length} from {at}")) }
}

/// Requests every page of the API.
pub(crate) fn look_around(ledger: &Ledger, mut random: fastrand::Rng) {
    let pages = ["intents", "volumes", "devices", "exports", "exports?check=true", "health", "openapi.json"];
    while ledger.goes_on() {
        std::thread::sleep(Duration::from_millis(random.u64(0..150)));
        let page = pages[random.usize(0..pages.len())];
        // Several requests at once, as impatient callers do.
        let at_once = if page.contains("check") { random.usize(1..8) } else { 1 };
        std::thread::scope(|scope| {
            for _ in 0..at_once {
                scope.spawn(|| look(ledger, page));
            }
        });
        if random.u8(0..10) == 0 {
            // A listener that comes and goes.
            drop(ledger.api.events());
        }
    }
}

fn look(ledger: &Ledger, page: &str) {
    match ledger.api.get(&format!("/api/v1/{page}")) {
        Ok(reply) if reply.status == 200 && reply.json == Value::Null => {
            ledger.fail(format_args!("{page}: no JSON: {}", reply.text));
        }
        Ok(reply) if reply.status == 500 => ledger.fail(format_args!("{page}: {}", reply.text)),
        Ok(_) => ledger.count("listings"),
        // The daemon was killed, or has no descriptors left.
        Err(_) => ledger.count("listings unanswered"),
    }
}
