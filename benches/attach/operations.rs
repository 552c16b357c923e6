//! An attach from end to end, without the cloud's own time: attachd, and a client that works as its predecessor did.
//!
//! **From end to end**: from just before the caller sends its request to the moment it knows that the volume is served. For
//! attachd that is `POST /api/v1/operations` (`attach`) on a new connection, until `completed` comes on an event stream that
//! was open before. For the predecessor's way it is the call of `attachVolume`, until the export is written.
//!
//! **What is subtracted** is what was waited for and is not the contender's work. By the log of the stand-in for CloudStack and
//! by a bare socket on udev's group:
//!
//! 1. each call that is answered before `attachVolume` is called (attachd: one `listVolumes`): from the moment the stand-in has
//!    read the request to the moment it has written the answer. attachd makes this call while it puts the operation on record;
//!    what lies before the answer to the caller's request is not subtracted, because attachd had work of its own then;
//! 2. the cloud: from the moment the stand-in has read `attachVolume` to the moment just before the kernel is told of the disk;
//! 3. the kernel and udevd: from there to udev's event, as in the row `served`;
//! 4. only for the predecessor's way, which needs the job's answer: from udev's event to the end of the job.
//!
//! So making, signing, sending and reading of calls is the contender's own time. attachd does not wait for the job's end, so
//! nothing of that is subtracted: what it does after udev's event counts in full, calls of CloudStack included.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use lab::{Lab, LabCloud, NbdClient, Volume};
use serde_json::{Value, json};
use stand_in::{JobFault, Setup};

use crate::Plan;
use crate::daemon::{self, Daemon};
use crate::predecessor::{JOB_POLL, Predecessor, Reached};
use crate::report::{Goal, Samples, Section, Table, ms};
use crate::setup::{self, CONFIG, EXPORTS, LIMIT, PORT, Witness, now_ns, on_timeline, step_ns, time_ns};

const SIZE: u64 = 1 << 20;

/// How long after the disk was plugged the job says that it is done: the guest knows of the disk first.
const SAYS_LATER: Duration = Duration::from_millis(100);

pub(crate) fn bench(plan: Plan) -> Result<Section> {
    let rounds = plan.count(50, 3);
    let stage = Stage::new()?;
    let predecessor = Predecessor::new(&stage.cloud)?;
    let mut daemon = Daemon::start(&stage.lab)?;
    // The first operation also finds out which VM this host is.
    attachd_turn(&mut daemon, &stage, Duration::ZERO, &mut Times::default())?;

    let mut times = Times::default();
    for round in 0..rounds {
        let takes = job_takes(round);
        // attachd has its turn before and after, so that a drift affects both alike.
        attachd_turn(&mut daemon, &stage, takes, &mut times)?;
        stage.turn_of(&predecessor, takes, &mut times)?;
        attachd_turn(&mut daemon, &stage, takes, &mut times)?;
        if (round + 1) % 10 == 0 {
            let [attachd, predecessor] = [&times.attachd, &times.predecessor].map(|samples| ms(samples.p50()));
            println!("{} rounds, p50: attachd {attachd}, predecessor's way {predecessor} ms", round + 1);
        }
    }
    Ok(times.section())
}

/// How long the job takes in a round: 1 s on average, spread evenly over the interval of the polls, so that it ends at every
/// phase of them equally often.
fn job_takes(round: usize) -> Duration {
    // Multiples of the golden ratio fill an interval evenly, however many they are.
    let phase = (f64::from(u32::try_from(round).unwrap_or_default()) + 0.5) * 0.618_033_988_749_895;
    JOB_POLL.mul_f64(phase.fract())
}

/// What both contenders share: the same stand-in, the same udevd, the same nbdkit, the same kind of disk. The fields are
/// dropped in order: the lab last.
struct Stage {
    witness: Witness,
    cloud: LabCloud,
    lab: Lab,
}

/// What the stand-in and udevd did, on the clock of the daemon's timeline.
struct Seen {
    /// The calls before that of `attachVolume`: read and answered when.
    before: Vec<(i128, i128)>,
    called: i128,
    plugged: i128,
    announced: i128,
    /// The job has said so.
    job_ended: i128,
}

impl Seen {
    /// What was waited for before the call of `attachVolume`, from this moment on.
    fn before_ns(&self, from: i128) -> i128 {
        self.before.iter().map(|(read, answered)| (answered - (*read).max(from)).max(0)).sum()
    }
}

impl Stage {
    fn new() -> Result<Self> {
        let lab = setup::lab()?;
        let cloud = lab.cloud(Setup::default())?;
        lab.attachd_config(&format!("{CONFIG}{}", cloud.config()?))?;
        Ok(Self { witness: Witness::new(&lab)?, cloud, lab })
    }

    /// A volume that CloudStack has and nobody has attached, and how its attach will go.
    fn volume(&self, takes: Duration) -> Volume {
        let volume = self.lab.volume();
        self.cloud.add(&volume, SIZE);
        self.cloud.set_job_takes(takes);
        self.cloud.next_job("attachVolume", JobFault::SaysLater(SAYS_LATER));
        volume
    }

    /// After an attach that began as the call of this number.
    fn seen(&self, volume: &Volume, calls_before: usize) -> Result<Seen> {
        self.cloud.wait_quiet(LIMIT)?;
        let calls = self.cloud.calls().split_off(calls_before);
        let attach = calls.iter().position(|call| call.command == "attachVolume").context("it was called")?;
        let (before, attach) = (&calls[..attach], &calls[attach]);
        let answered = |at: Option<Timestamp>| at.map(Timestamp::as_nanosecond).context("it was answered");
        let before = before.iter().map(|call| Ok((call.at.as_nanosecond(), answered(call.answered_at)?)));
        let before = before.collect::<Result<_>>()?;
        let jobs = self.cloud.jobs();
        let job = jobs.last().context("a job was begun")?;
        ensure!(job.command == "attachVolume" && job.status == 1, "{job:?}");

        let node = self.cloud.node(volume).context("its disk is here")?;
        let name = node.file_name().and_then(|name| name.to_str()).context("a loop device")?;
        let diskseq = std::fs::read_to_string(format!("/sys/block/{name}/diskseq"))?;
        let ours =
            |heard: &lab::Heard| heard.get("ID_SERIAL") == volume.serial && heard.get("DISKSEQ") == diskseq.trim();
        Ok(Seen {
            before,
            called: attach.at.as_nanosecond(),
            plugged: on_timeline(self.cloud.plugged_ns(volume).context("it was plugged")?),
            announced: on_timeline(self.witness.wait_for(ours)?.monotonic_ns),
            job_ended: job.completed.context("the job has ended")?.as_nanosecond(),
        })
    }

    fn turn_of(&self, predecessor: &Predecessor, takes: Duration, times: &mut Times) -> Result<()> {
        let volume = self.volume(takes);
        // It wrote no claims; without one the NBD server cannot read the disk here.
        self.lab.claim(&volume.serial)?;
        let calls = self.cloud.calls().len();
        let Reached { asked, job_seen, done } = predecessor.attach(&volume)?;
        let seen = self.seen(&volume, calls)?;
        let free = seen.announced.max(seen.job_ended);
        times.predecessor.add_between(seen.before_ns(asked) + free - seen.called, done - asked);
        times.predecessor_steps[0].add_between(free, job_seen);
        times.predecessor_steps[1].add_between(job_seen, done);

        let served = NbdClient::connect(&format!("127.0.0.1:{PORT}"), &volume.export())?.size();
        ensure!(served == SIZE, "{served} bytes served");
        std::fs::remove_file(std::path::Path::new(EXPORTS).join(volume.export()))?;
        self.cloud.detach(&volume.id)?;
        self.lab.unclaim(&volume.serial)
    }
}

/// Takes attachd's turn.
fn attachd_turn(daemon: &mut Daemon, stage: &Stage, takes: Duration, times: &mut Times) -> Result<()> {
    let volume = stage.volume(takes);
    let calls = stage.cloud.calls().len();
    daemon.wake()?;
    daemon::caught_up();

    let request = json!({ "type": "attach", "volume_id": volume.id });
    let asked = now_ns();
    let begun = daemon.api.post("/api/v1/operations", &request)?.expect(201)?;
    let accepted = now_ns();
    // The step with which the intent is put on record.
    let calls_now = |event: &Value| event["id"] == begun["id"] && event["step"]["name"] == "attach";
    let calling = daemon.events.wait_for(calls_now, LIMIT).with_context(|| daemon.attachd.stderr_text())?;
    let over = |event: &Value| event["id"] == begun["id"] && !event["completed_at"].is_null();
    let ended = daemon.events.wait_for(over, LIMIT).with_context(|| daemon.attachd.stderr_text())?;
    let done = now_ns();
    ensure!(ended["status"] == "completed", "{ended:#}{}", stage.cloud.told());

    let shown = daemon.api.get(&format!("/api/v1/volumes/{}", volume.id))?.expect(200)?;
    let seen = stage.seen(&volume, calls)?;
    // On a busy machine the witness may be woken after the daemon, so the earlier of the two counts.
    let announced = seen.announced.min(step_ns(&shown, "heard")?);
    let (decided_to_call, ready) = (time_ns(&calling["updated_at"])?, step_ns(&shown, "ready")?);
    let decided = time_ns(&ended["completed_at"])?;
    let before_ns = seen.before_ns(accepted);
    times.attachd.add_between(before_ns + announced - seen.called, done - asked);
    times.accepted.add_between(asked, accepted);
    times.before_jobs_end += usize::from(done < seen.job_ended);
    let steps = [
        // The call of listVolumes lies before that step.
        (asked + before_ns, decided_to_call),
        (decided_to_call, seen.called),
        (0, before_ns),
        (seen.called, seen.plugged),
        (seen.plugged, announced),
        (announced, ready),
        (ready, decided),
        (decided, done),
    ];
    times.steps.iter_mut().zip(steps).for_each(|(samples, (from, to))| samples.add_between(from, to));

    setup::withdraw(&daemon.api, &volume.id)?;
    stage.cloud.detach(&volume.id)?;
    daemon.rest()
}

/// The steps of an attach by attachd, in order but for the third, which lies within the first.
const STEPS: [&str; 8] = [
    "request → the attach is decided (a commit; beside it the call of `listVolumes`)",
    "decided → `attachVolume` is at the cloud (a commit with the intent, its claim, the call)",
    "cloud: `listVolumes`, as far as it was waited for",
    "cloud: `attachVolume` → disk plugged",
    "kernel and udevd: disk plugged → udev's event",
    "udev's event → ready",
    "ready → the operation's end is decided",
    "decided → the caller's event stream (a commit)",
];

/// Which of them are subtracted.
const SUBTRACTED: std::ops::RangeInclusive<usize> = 2..=4;

#[derive(Default)]
struct Times {
    attachd: Samples,
    predecessor: Samples,
    /// To the answer of the request.
    accepted: Samples,
    steps: [Samples; 8],
    /// The job's end → seen → exported.
    predecessor_steps: [Samples; 2],
    /// How often attachd was done before the job said that it was.
    before_jobs_end: usize,
}

impl Times {
    fn section(self) -> Section {
        let mut contenders =
            Table::of_samples("end to end, minus the cloud's own time", &["p50 ÷ attachd", "p99 ÷ attachd"]);
        for (name, samples) in [("attachd", &self.attachd), ("the predecessor's way", &self.predecessor)] {
            let ratios = [samples.p50() / self.attachd.p50(), samples.p99() / self.attachd.p99()];
            contenders.samples(name, samples, ratios.map(|ratio| format!("{ratio:.0}")));
        }
        let mut steps = Table::of_samples("attachd's steps", &["subtracted"]);
        for (n, (name, samples)) in STEPS.into_iter().zip(&self.steps).enumerate() {
            steps.samples(name, samples, [if SUBTRACTED.contains(&n) { "yes" } else { "-" }.to_owned()]);
        }
        steps.samples("beside them: request → its answer", &self.accepted, ["-".to_owned()]);
        let mut theirs = Table::of_samples("the predecessor's steps", &[]);
        let names = ["udev's event, the job's end → seen by the poll", "seen → exported"];
        for (name, samples) in names.into_iter().zip(&self.predecessor_steps) {
            theirs.samples(name, samples, []);
        }

        let less = self.predecessor.p50() / self.attachd.p50();
        let goals = vec![
            Goal {
                wanted: "attachd under 3 ms (p50)".into(),
                measured: format!("{} ms (p99 {})", ms(self.attachd.p50()), ms(self.attachd.p99())),
                met: self.attachd.p50() < 3.0,
            },
            Goal {
                wanted: "100 × less than the predecessor's way (p50)".into(),
                measured: format!("{less:.0} × ({} against {} ms)", ms(self.attachd.p50()), ms(self.predecessor.p50())),
                met: less >= 100.0,
            },
        ];
        let about = format!(
            "From the caller's request to the moment it knows that the volume is served, minus what is waited for: the \
             cloud (from the moment the stand-in for CloudStack has read `attachVolume` to the moment before the kernel is \
             told of the disk; and `listVolumes` before it, from read to answered, but not the part of it during which attachd put \
             the operation on record), and the kernel and udevd (from there to \
             udev's event, as a bare socket receives it, or attachd, where it is woken first). attachd: `POST \
             /api/v1/operations`, then `completed` on an open event stream. The predecessor's way: `attachVolume`, the job \
             asked for every {} s, the by-id link looked for every 100 ms, the export written; its tables and its signal to \
             the NBD server are left out, and the time from udev's event to the job's end is subtracted, too, because it \
             needs the job's answer. attachd does not: it was done before the job said so in {} of {} attaches. A job takes \
             from 0 to {} s, evenly spread, and says so {} ms after the disk was plugged. The contenders take turns in one \
             lab, with one stand-in, one udevd and one nbdkit; attachd is stopped (SIGSTOP) while it is not its turn.",
            JOB_POLL.as_secs(),
            self.before_jobs_end,
            self.attachd.len(),
            JOB_POLL.as_secs(),
            SAYS_LATER.as_millis(),
        );
        let mut raw = vec![("attachd".to_owned(), self.attachd), ("predecessor".to_owned(), self.predecessor)];
        let names = ["decision", "call", "listVolumes", "plugged", "udev", "ready", "decided", "caller"];
        raw.extend(names.map(|name| format!("attachd to {name}")).into_iter().zip(self.steps));
        raw.push(("attachd to answer".to_owned(), self.accepted));
        raw.extend(
            ["seen", "exported"].map(|name| format!("predecessor to {name}")).into_iter().zip(self.predecessor_steps),
        );
        Section {
            title: "Attach from end to end, in phases",
            about,
            tables: vec![contenders, steps, theirs],
            goals,
            raw,
        }
    }
}
