//! Runs the engine in the world of [`super::model`], step by step, as a seed decides.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::sync::{Notify, broadcast, mpsc, watch};

use super::callers::Call;
use super::host::SLOTS;
use super::model::Model;
use super::moves;
use super::tasks::Tasks;
use super::tools::Tool;
use super::trace::Trace;
use crate::config::Limits;
use crate::device::evidence::Ground;
use crate::device::monitor::Notice;
use crate::engine::{Engine, Input, Inputs, SharedEvent, Tools};
use crate::export::server::Server;
use crate::store::StoreError;
use crate::volume::State;

/// The daemon while it runs.
pub(super) struct Daemon {
    pub(super) engine: Engine,
    pub(super) inputs: mpsc::Sender<Input>,
    events: broadcast::Receiver<SharedEvent>,
    condition: watch::Receiver<Option<StoreError>>,
}

pub(super) struct Play {
    pub(super) tool: Tool,
    pub(super) tasks: Tasks,
    pub(super) daemon: Option<Daemon>,
    pub(super) calls: Vec<Call>,
    pub(super) trace: Trace,
    /// How often each state was reached and each kind of answer was given. A run in which nothing happens shows
    /// nothing.
    pub(super) seen: BTreeMap<String, u64>,
}

/// A run that found a violation.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) step: u64,
    pub(super) what: String,
    pub(super) last: String,
}

/// A run without violations.
pub(super) struct Ended {
    pub(super) sum: u64,
    pub(super) lines: u64,
    pub(super) seen: BTreeMap<String, u64>,
}

/// Runs this many steps.
pub(super) fn play(seed: u64, steps: u64) -> Result<Ended, Failed> {
    let mut play = Play {
        tool: Tool::new(Model::new(seed)),
        tasks: Tasks::default(),
        daemon: None,
        calls: Vec::new(),
        trace: Trace::default(),
        seen: BTreeMap::new(),
    };
    for step in 1..=steps {
        moves::any(&mut play, step);
        let violations = std::mem::take(&mut play.tool.model().violations);
        let violated = violations.into_iter().next().or_else(|| play.check());
        if let Some(what) = violated {
            return Err(Failed { step, what, last: play.trace.last() });
        }
    }
    Ok(Ended { sum: play.trace.sum(), lines: play.trace.lines, seen: play.seen })
}

impl Play {
    /// Returns true with this probability in percent.
    pub(super) fn chance(&self, percent: u32) -> bool {
        self.tool.model().chance(percent)
    }

    pub(super) fn roll(&self, below: usize) -> usize {
        self.tool.model().rng.usize(0..below)
    }

    pub(super) fn tell(&mut self, what: impl Into<String>) {
        let at = self.tool.micros();
        self.trace.line(format!("{at:>12} {}", what.into()));
    }

    pub(super) fn count(&mut self, what: String) {
        *self.seen.entry(what).or_default() += 1;
    }

    pub(super) fn go_on(&mut self) {
        let tool = self.tool.clone();
        self.tasks.poll(|with| with(&mut tool.model().gates));
    }

    /// Sends an input, as the watches do.
    pub(super) fn send(&mut self, input: Input) {
        if let Some(daemon) = &self.daemon {
            assert!(daemon.inputs.try_send(input).is_ok(), "the queue is long enough");
        }
    }

    /// Opens one gate. Returns false if nothing waits.
    pub(super) fn open(&mut self, place: usize) -> bool {
        let opened = self.tool.model().gates.open(place);
        let Some(what) = opened else { return false };
        self.tell(format!("done: {what}"));
        self.go_on();
        true
    }

    /// Runs one turn of the engine, as [`Engine::run`] does. Returns false if there is nothing to do.
    pub(super) fn turn(&mut self) -> bool {
        let now = crate::clock::Clock::now(&self.tool);
        let Some(daemon) = &mut self.daemon else { return false };
        let input = if daemon.engine.world.next_wake().is_some_and(|wake| wake <= now) {
            Input::Tick
        } else if works(&mut daemon.condition) {
            Input::StoreWorks
        } else {
            match daemon.engine.inputs.try_recv() {
                Ok(input) => input,
                Err(_) => return false,
            }
        };
        let name = name(&input);
        let kernel = match &input {
            Input::Monitor(Notice::Event(event)) => Some(event.devnum),
            _ => None,
        };
        daemon.engine.handle(input);
        self.tell(format!("turn: {name}"));
        if let Some(devnum) = kernel {
            self.check_exchanged(devnum);
        }
        self.hear();
        if let Some(daemon) = &mut self.daemon {
            daemon.engine.story.post_all(&mut daemon.engine.world);
        }
        self.go_on();
        true
    }

    /// Takes the events and answers of the engine.
    pub(super) fn hear(&mut self) {
        let Some(daemon) = &mut self.daemon else { return };
        let mut lines = Vec::new();
        while let Ok(event) = daemon.events.try_recv() {
            lines.push((
                event.state,
                format!("  {} {} {} {}", event.volume_id, event.event.name(), event.state, event.detail),
            ));
        }
        for (state, line) in lines {
            if state == State::Ready {
                self.count("ready".to_owned());
            }
            self.tell(line);
        }
        self.hear_answers();
    }

    /// Starts the daemon, as `daemon.rs` does. Returns false if it was killed or failed meanwhile.
    pub(super) fn start(&mut self) -> bool {
        self.tell("start");
        let tool = self.tool.clone();
        let inputs = Inputs::default();
        let back = inputs.sender.clone();
        let (ground, records, restored) = {
            let mut model = tool.model();
            model.host.heard = true;
            let records: Vec<_> = model.store.records.values().cloned().collect();
            let wanted: Vec<_> = records.iter().map(|record| record.intent.volume).collect();
            model.claims_touched.clear();
            let restored = model.restore(&wanted, &[]);
            let ground = Ground { boot_id: model.boot_id(), nbd_gid: super::host::NBD };
            (ground, records, restored)
        };
        let tools = Tools {
            clock: Arc::new(tool.clone()),
            outside: Arc::new(tool.clone()),
            disks: Arc::new(tool.clone()),
            truth: Arc::new(tool.clone()),
            claims: Arc::new(tool.clone()),
            stacks: Arc::new(Notify::new()),
            limits: Limits::default(),
            backend: Arc::new(tool.clone()),
            helper: Arc::new(tool.clone()),
            server: Arc::new(tool.clone()),
            server_unit: "nbd.service",
            vm_id: "this-vm".to_owned(),
        };
        let condition = tool.model().store.condition.subscribe();
        let (mut engine, handle) = Engine::new(ground, tools, inputs, records, &restored);
        let Ok(events) = handle.events() else { return false };
        {
            let mut looking = pin!(engine.look_around());
            loop {
                match looking.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(Ok(())) => break,
                    Poll::Ready(Err(error)) => {
                        self.tell(format!("the start has failed: {error}"));
                        self.kill();
                        return false;
                    }
                    Poll::Pending => {}
                }
                if !self.tool.model().calm {
                    if self.chance(3) {
                        self.kill();
                        return false;
                    }
                    if self.chance(30) {
                        moves::world(self);
                    }
                }
                self.open(0);
            }
        }
        engine.steps.host_disks();
        self.daemon = Some(Daemon { engine, inputs: back, events, condition });
        self.tool.model().nbd.changed = true;
        self.count("start".to_owned());
        self.hear();
        if let Some(daemon) = &mut self.daemon {
            daemon.engine.story.post_all(&mut daemon.engine.world);
        }
        self.go_on();
        true
    }

    /// Kills the daemon. Work that it has started may still be done.
    pub(super) fn kill(&mut self) {
        self.tell("kill");
        self.calls.clear();
        self.daemon = None;
        for _ in 0..self.roll(3) {
            let waiting = self.tool.model().gates.len();
            if waiting > 0 {
                let place = self.roll(waiting);
                self.open(place);
            }
        }
        {
            let mut model = self.tool.model();
            let begun = model.store.queue.len();
            if model.store.failure.is_none() && begun > 0 {
                let done = model.rng.usize(0..=begun);
                let (told, writes) = model.store.take(done, false);
                model.commit(told);
                for (changes, _) in writes {
                    model.commit(changes);
                }
            }
            model.store.kill();
            model.gates.kill();
            model.hanging.clear();
            model.free.clear();
            model.host.heard = false;
            model.host.kernel.clear();
            model.host.udev.clear();
            model.host.use_changed.clear();
            model.nbd.folders = crate::folder_watch::FolderChanges::default();
        }
        self.tasks.kill();
        self.count("kill".to_owned());
    }

    /// Reboots the host.
    pub(super) fn reboot(&mut self) {
        self.kill();
        self.tell("reboot");
        let mut model = self.tool.model();
        model.boot += 1;
        model.quiet.clear();
        model.nbd.die();
        model.nbd.exports.clear();
        model.nbd.sections.clear();
        model.nbd.touched.clear();
        model.nbd.stuck.clear();
        let disks = std::mem::take(&mut model.host.disks);
        model.host.links.clear();
        let held_up = model.host.udevd.held_up_at;
        model.host.udevd = super::host::Udevd { alive: true, held_up_at: held_up, ..Default::default() };
        for (devnum, disk) in disks {
            model.host.diskseq += 1;
            let diskseq = model.host.diskseq;
            model.host.uevent("add", devnum, diskseq);
            let group = super::host::ROOT;
            model.host.disks.insert(devnum, super::host::Disk { diskseq, group, ..disk });
        }
        model.nbd.start();
        drop(model);
        self.count("reboot".to_owned());
    }

    /// Reports the server's state, as the server's watch does.
    pub(super) fn tell_of_server(&mut self) -> bool {
        let server = {
            let nbd = &mut self.tool.model().nbd;
            if !std::mem::take(&mut nbd.changed) {
                return false;
            }
            if nbd.up {
                Server::Up { pid: i32::try_from(nbd.life).ok() }
            } else {
                Server::Down { why: "it has ended".into() }
            }
        };
        self.tell(format!("watch: {server}"));
        self.send(server.into());
        true
    }

    /// Returns a slot that is empty, or one with a disk.
    pub(super) fn slot(&self, with_disk: bool) -> Option<crate::device::DevNum> {
        let mut model = self.tool.model();
        let slots: Vec<_> = SLOTS.into_iter().filter(|slot| model.host.disks.contains_key(slot) == with_disk).collect();
        if slots.is_empty() { None } else { Some(slots[model.rng.usize(0..slots.len())]) }
    }
}

/// As in [`Engine::run`].
fn works(condition: &mut watch::Receiver<Option<StoreError>>) -> bool {
    condition.has_changed().unwrap_or(false) && condition.borrow_and_update().is_none()
}

/// Returns the input's name for the trace.
fn name(input: &Input) -> String {
    match input {
        Input::Tick => "tick".into(),
        Input::StoreWorks => "the store works".into(),
        Input::Monitor(heard) => match heard {
            Notice::Event(event) => {
                format!("{:?} {} {} {} {:?}", event.origin, event.action, event.devnum, event.seqnum, event.diskseq)
            }
            Notice::Lost(place) => format!("lost: {place}"),
        },
        Input::Server(server) => format!("{server:?}"),
        Input::Request(_) => "a request".into(),
        Input::Settle { ids, .. } => format!("settle {ids:?}"),
        Input::UseChanged(changed) => format!("use of {:?}", changed.0),
        Input::Looked { devnum, reading, found } => format!("looked {devnum} {reading} {found:?}"),
        Input::Answered(devnum) => format!("answered {devnum}"),
        Input::Scanned { reading, all, reason, .. } => format!("scanned {reading} {reason} {all:?}"),
        Input::Examined { volume, disks } => format!("examined {volume} {:?}", disks.as_ref().map(Vec::len)),
        Input::Folders(changes) => format!("folders {changes:?}"),
        Input::Exports { contents, .. } => format!("exports {contents:?}"),
        Input::Prepared { ticket, result } => format!("prepared {ticket:?} {result:?}"),
        Input::Claims { result, .. } => format!("claims {result:?}"),
        Input::Admitted { volume, result } => format!("admitted {volume} {}", result.is_ok()),
        Input::Clients { ticket, epoch, clients } => format!("clients {ticket:?} {epoch} {clients:?}"),
        Input::Leaving { ticket, outcome } => format!("leaving {ticket:?} {outcome:?}"),
        Input::Unclaimed { ticket, removed } => {
            format!("unclaimed {ticket:?} {} {}", removed.prepared.is_ok(), removed.claim.is_ok())
        }
        Input::TakenBack { volume, attempts, result } => format!("taken back {volume} {attempts} {}", result.is_ok()),
        Input::TakeBackAgain(volume, attempts) => format!("take back {volume} {attempts}"),
        Input::Recorded { ticket, result, .. } => format!("recorded {ticket:?} {result:?}"),
        Input::Told { last, result } => format!("told {last:?} {}", result.is_ok()),
        Input::TellAgain => "tell again".into(),
        Input::Helper { asked, answer } => format!("helper {asked:?} {}", answer.is_ok()),
        Input::UnmarkAgain(serial, attempts) => format!("unmark again {serial} {attempts}"),
        Input::Tried { ticket, answer, .. } => format!("tried {ticket:?} {answer:?}"),
        Input::Greeted { life, greeted } => format!("greeted {life} {}", greeted.is_ok()),
        Input::GreetAgain { life } => format!("greet again {life}"),
        Input::Probed { ticket, epoch, result, .. } => format!("probed {ticket:?} {epoch} {result:?}"),
    }
}
