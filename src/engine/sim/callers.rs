//! The callers of the simulation. Each answer of the engine is compared with what is durable at that moment.

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::play::Play;
use crate::engine::Input;
use crate::engine::answers::{Accepted, Rejection};
use crate::engine::departure::Caller;
use crate::engine::input::Request;
use crate::engine::leaving;
use crate::helper_client::Holders;
use crate::identity::{OperationId, VolumeId};
use crate::volume::{By, Intent, User};

/// A call that is not answered yet.
pub(super) enum Call {
    Intend(VolumeId, oneshot::Receiver<Result<Accepted, Rejection>>),
    Leave(VolumeId, leaving::Call, oneshot::Receiver<Result<Holders, Rejection>>),
    Resync(oneshot::Receiver<Result<(), String>>),
}

/// Returns the id of operation `n`.
pub(super) fn operation(n: usize) -> OperationId {
    format!("0000000{n}-0000-4000-8000-000000000000").parse().expect("an id")
}

impl Play {
    pub(super) fn intend(&mut self, intent: Intent) {
        if self.daemon.is_none() {
            return;
        }
        let (reply, answer) = oneshot::channel();
        self.tell(format!("call: intend {} {:?} {:?}", intent.volume, intent.size_bytes, intent.deadline_seconds));
        self.calls.push(Call::Intend(intent.volume, answer));
        self.send(Input::Request(Request::Intend { intent, also: Vec::new(), reply }));
    }

    pub(super) fn leave(&mut self, id: VolumeId, call: leaving::Call) {
        if self.daemon.is_none() {
            return;
        }
        let (reply, answer) = oneshot::channel();
        self.tell(format!("call: {call:?} {id}"));
        self.calls.push(Call::Leave(id, call, answer));
        let force = match call {
            leaving::Call::Seal { force, .. } | leaving::Call::Release { force, .. } => force,
            leaving::Call::Unseal(_) => false,
        };
        let mut model = self.tool.model();
        model.quiet.remove(&id);
        if force {
            model.forced.insert(id);
        }
        drop(model);
        self.send(Input::Request(Request::Leave(id, call, Caller { user: User(Some(0)), reply })));
    }

    pub(super) fn resync(&mut self) {
        if self.daemon.is_none() {
            return;
        }
        let (done, answer) = oneshot::channel();
        self.tell("call: resync");
        self.calls.push(Call::Resync(answer));
        self.send(Input::Request(Request::Resync("asked for", None, done)));
    }

    /// Takes the answers that have arrived.
    pub(super) fn hear_answers(&mut self) {
        for call in std::mem::take(&mut self.calls) {
            match call {
                Call::Intend(id, mut answer) => match answer.try_recv() {
                    Ok(answer) => self.intended(id, &answer),
                    Err(TryRecvError::Empty) => self.calls.push(Call::Intend(id, answer)),
                    Err(TryRecvError::Closed) => self.unanswered(),
                },
                Call::Leave(id, call, mut answer) => match answer.try_recv() {
                    Ok(answer) => self.left(id, call, &answer),
                    Err(TryRecvError::Empty) => self.calls.push(Call::Leave(id, call, answer)),
                    Err(TryRecvError::Closed) => self.unanswered(),
                },
                Call::Resync(mut answer) => match answer.try_recv() {
                    Ok(answer) => self.tell(format!("answer: resync {answer:?}")),
                    Err(TryRecvError::Empty) => self.calls.push(Call::Resync(answer)),
                    Err(TryRecvError::Closed) => self.unanswered(),
                },
            }
        }
    }

    fn unanswered(&mut self) {
        self.tool.model().violated("a caller is left without an answer by a daemon that runs".to_owned());
    }

    fn intended(&mut self, id: VolumeId, answer: &Result<Accepted, Rejection>) {
        self.tell(format!("answer: intend {id} {answer:?}"));
        let left = self.daemon.as_ref().is_some_and(|daemon| daemon.engine.world.admissions.is_left(id));
        let mut model = self.tool.model();
        let on_record = model.store.records.get(&id).is_some_and(|record| record.sealed != Some(By::Withdrawal));
        let claimed = model.claims.contains(&id.serial()) || model.stolen.contains(&id.serial());
        match answer {
            Ok(_) if !on_record => model.violated(format!("{id} is accepted and not on record")),
            Ok(Accepted::New) if !claimed => model.violated(format!("{id} is accepted and not claimed")),
            Ok(Accepted::New) => drop(model.forced.remove(&id)),
            Err(Rejection::Store(_)) if model.store.records.contains_key(&id) && !left => {
                model.violated(format!("{id} was refused for the store, and is on record"));
            }
            _ => {}
        }
        drop(model);
        self.count(format!("intend {}", answer.is_ok()));
    }

    fn left(&mut self, id: VolumeId, call: leaving::Call, answer: &Result<Holders, Rejection>) {
        self.tell(format!("answer: {call:?} {id} {answer:?}"));
        let mut model = self.tool.model();
        let record = model.store.records.get(&id).map(|record| record.sealed);
        let kept = match call {
            _ if answer.is_err() => true,
            leaving::Call::Seal { by: By::Withdrawal, .. } | leaving::Call::Release { .. } => {
                matches!(record, None | Some(Some(By::Withdrawal)))
            }
            leaving::Call::Seal { by, .. } => record == Some(Some(by)),
            leaving::Call::Unseal(_) => record == Some(None),
        };
        if !kept {
            model.violated(format!("{call:?} of {id} is answered with success, and on record is {record:?}"));
        }
        drop(model);
        let name = match call {
            leaving::Call::Seal { by: By::Withdrawal, .. } => "withdraw",
            leaving::Call::Seal { .. } => "seal",
            leaving::Call::Unseal(_) => "unseal",
            leaving::Call::Release { .. } => "release",
        };
        self.count(format!("{name} {}", answer.is_ok()));
    }
}
