//! How far the withdrawal of a volume is, and what is next. This is pure: [`super::leave`] does what is decided here.
//!
//! A volume is sealed first: its export is revoked, so that no new client can connect. Whether it stays revoked
//! depends on the connected clients. An operation's seal is recorded, and the volume stays sealed until that
//! operation unseals or releases it. A withdrawal is a seal that is released at once. For a released volume the rows
//! are deleted, then the claim. With `force`, a volume whose clients are known waits (lingers) until they are gone,
//! and that is recorded.

use super::answers::{Clients, Rejection};
use crate::helper_client::Holders;
use crate::identity::{OperationId, VolumeId};
use crate::volume::By;

/// What a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// Revoke the export, and keep it revoked. `force`: even if clients are or may be connected.
    Seal { by: By, force: bool },
    /// Give the export back.
    Unseal(OperationId),
    /// Withdraw a sealed volume for good.
    Release { operation: OperationId, force: bool },
}

/// How far the withdrawal of a volume is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Leaving {
    /// The volume is not being withdrawn.
    #[default]
    No,
    /// The clients are being asked for. Until then the volume is served as before.
    Asking { by: By, force: bool },
    /// The export is revoked.
    Sealed(By, Seal),
    /// The volume was withdrawn by force, which is recorded. It goes when its clients are gone. `looks`: the number
    /// of checks so far. `asking`: a check is running.
    Lingering { looks: u32, asking: bool },
    /// The rows are being deleted.
    Going { from: From, clients: Holders },
    /// The rows are deleted, and nothing brings the volume back. The preparation of its export and its claim are
    /// removed.
    Gone { clients: Holders },
}

/// How far a seal is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seal {
    /// The clients are being asked for once more. The export may still be given back.
    Asking { force: bool },
    /// An operation's seal is being recorded.
    Recording { clients: Holders },
    /// The seal is recorded.
    Kept,
    /// The seal is recorded. The clients are being asked for, because the operation seals once more.
    Again { force: bool },
    /// The seal is recorded. The clients are being asked for before the release.
    Releasing { force: bool },
    /// The end of the seal is being recorded.
    Unsealing,
    /// Clients are connected, and the release is forced. It is being recorded that the volume goes when they are
    /// gone.
    Insisting { clients: Holders },
}

/// What a volume that goes was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// Sealed for a withdrawal.
    Withdrawal { force: bool },
    /// Sealed by this operation, which is recorded.
    Operation(OperationId),
    /// Lingering, with this number of checks.
    Lingering { looks: u32 },
}

/// The result of the last [`Act`], or an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The answer who is connected. `current`: no new client can have connected since the question.
    Clients { clients: Clients, current: bool },
    /// The write is durable.
    Written,
    /// The write failed, or the export could not be revoked.
    Failed(Rejection),
    /// The claim is removed.
    Unclaimed,
    /// The timer has ended, or something happened to the disk.
    Look,
}

/// What follows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Next {
    /// How far the withdrawal is now.
    pub(super) leaving: Leaving,
    /// What to do.
    pub(super) act: Act,
    /// What to answer the waiting caller after that: who is or may be still connected, or why it failed.
    pub(super) answer: Option<Result<Holders, Rejection>>,
}

/// What to do. The export is revoked before that if [`Next::closes`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// Nothing.
    Rest,
    /// Ask who is connected.
    Ask,
    /// Make this durable.
    Write(Write),
    /// Report that the volume is sealed.
    TellSealed,
    /// Report that the volume lingers with these clients, and check again later.
    TellLingering(Holders),
    /// Check again later.
    LookLater,
    /// Give the volume back to the state before.
    GiveBack,
    /// Remove the preparation of its export, and its claim.
    Unclaim,
    /// Remove the volume from memory.
    Forget,
}

/// What to make durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Write {
    /// The seal by this operation.
    Seal(OperationId),
    /// The end of the seal.
    Unseal(OperationId),
    /// The forced withdrawal, which is completed when these clients are gone.
    Lingers(Holders),
    /// The deletion of the rows.
    Rows,
}

impl Leaving {
    /// Returns whether no new client is admitted and no new step begins for the volume.
    pub(super) fn is_closed(&self) -> bool {
        !matches!(self, Self::No | Self::Asking { .. })
    }

    /// Returns whether it is recorded that no client is admitted.
    pub(super) fn is_on_record(&self) -> bool {
        match self {
            Self::Lingering { .. } | Self::Going { from: From::Lingering { .. } | From::Operation(_), .. } => true,
            Self::Sealed(By::Operation(_), seal) => !matches!(seal, Seal::Asking { .. } | Seal::Recording { .. }),
            _ => false,
        }
    }

    /// Returns the operation that has sealed the volume, or is about to.
    pub(super) fn operation(&self) -> Option<OperationId> {
        match self {
            Self::Asking { by: By::Operation(operation), .. }
            | Self::Sealed(By::Operation(operation), _)
            | Self::Going { from: From::Operation(operation), .. } => Some(*operation),
            _ => None,
        }
    }

    /// Returns whether the volume is or is being withdrawn, so that its claim may disappear at any moment.
    pub(super) fn may_go(&self) -> bool {
        match self {
            Self::No | Self::Asking { .. } => false,
            Self::Sealed(by, seal) => *by == By::Withdrawal || matches!(seal, Seal::Insisting { .. }),
            Self::Lingering { .. } | Self::Going { .. } | Self::Gone { .. } => true,
        }
    }
}

/// Returns what the store remembers.
pub(super) fn remembered(sealed: Option<By>) -> Leaving {
    match sealed {
        None => Leaving::No,
        Some(By::Withdrawal) => Leaving::Lingering { looks: 0, asking: false },
        Some(by @ By::Operation(_)) => Leaving::Sealed(by, Seal::Kept),
    }
}

/// Handles a call: returns how far the withdrawal is now and what to do, or the answer at once.
pub(super) fn called(
    volume: VolumeId,
    leaving: &Leaving,
    call: Call,
) -> Result<(Leaving, Act), Result<Holders, Rejection>> {
    let theirs = match call {
        Call::Seal { by, .. } => by,
        Call::Unseal(operation) | Call::Release { operation, .. } => By::Operation(operation),
    };
    match (leaving, call) {
        (Leaving::No, Call::Seal { by, force }) => Ok((Leaving::Asking { by, force }, Act::Ask)),
        // The caller asked before, and the answer was lost.
        (Leaving::No, Call::Unseal(_)) => Err(Ok(nobody())),
        // The volume was withdrawn by force before, so the answer is the same.
        (Leaving::Lingering { looks, asking: false }, Call::Seal { by: By::Withdrawal, .. }) => {
            Ok((Leaving::Lingering { looks: *looks, asking: true }, Act::Ask))
        }
        (Leaving::Sealed(by, Seal::Kept), call) if *by == theirs => {
            let (seal, act) = match call {
                Call::Seal { force, .. } => (Seal::Again { force }, Act::Ask),
                Call::Unseal(operation) => (Seal::Unsealing, Act::Write(Write::Unseal(operation))),
                Call::Release { force, .. } => (Seal::Releasing { force }, Act::Ask),
            };
            Ok((Leaving::Sealed(*by, seal), act))
        }
        (Leaving::Sealed(By::Operation(operation), _), _) if By::Operation(*operation) != theirs => {
            Err(Err(Rejection::Sealed { volume, operation: *operation }))
        }
        (Leaving::No, Call::Release { operation, .. }) => Err(Err(Rejection::NotSealed { volume, operation })),
        // Another call, or a check of attachd's own, is running.
        _ => Err(Err(Rejection::Leaving(volume))),
    }
}

/// Returns what follows from the result of the last act.
pub(super) fn next(volume: VolumeId, leaving: Leaving, outcome: Outcome) -> Next {
    match (leaving, outcome) {
        (Leaving::Asking { by, force }, Outcome::Clients { clients, current }) => {
            match pass(volume, clients, current, force) {
                Ok(None) => Next::act(Leaving::Sealed(by, Seal::Asking { force }), Act::Ask),
                Ok(Some(clients)) => sealed(by, force, clients),
                // The volume was served all the time.
                Err(why) => Next { leaving: Leaving::No, act: Act::Rest, answer: Some(Err(why)) },
            }
        }
        (Leaving::Sealed(by, Seal::Asking { force }), Outcome::Clients { clients, current }) => {
            match pass(volume, clients, current, force) {
                Ok(None) => Next::act(Leaving::Sealed(by, Seal::Asking { force }), Act::Ask),
                Ok(Some(clients)) => sealed(by, force, clients),
                Err(why) => back(by, false, why),
            }
        }
        (Leaving::Sealed(by, Seal::Again { force }), Outcome::Clients { clients, current }) => {
            match pass(volume, clients, current, force) {
                Ok(None) => Next::act(Leaving::Sealed(by, Seal::Again { force }), Act::Ask),
                Ok(Some(clients)) => Next::kept(by, Act::Rest, Ok(listed(clients))),
                Err(why) => back(by, true, why),
            }
        }
        (Leaving::Sealed(by, Seal::Releasing { force }), Outcome::Clients { clients, current }) => {
            match pass(volume, clients, current, force) {
                Ok(None) => Next::act(Leaving::Sealed(by, Seal::Releasing { force }), Act::Ask),
                Ok(Some(clients)) => released(by, force, clients),
                Err(why) => back(by, true, why),
            }
        }
        (Leaving::Sealed(by, Seal::Recording { clients }), Outcome::Written) => {
            Next::kept(by, Act::TellSealed, Ok(clients))
        }
        (Leaving::Sealed(_, Seal::Unsealing), Outcome::Written) => {
            Next { leaving: Leaving::No, act: Act::GiveBack, answer: Some(Ok(nobody())) }
        }
        (Leaving::Sealed(_, Seal::Insisting { clients }), Outcome::Written) => Next {
            leaving: Leaving::Lingering { looks: 1, asking: false },
            act: Act::TellLingering(clients.clone()),
            answer: Some(Ok(clients)),
        },
        (Leaving::Sealed(by, seal), Outcome::Failed(why)) => {
            let recorded = !matches!(seal, Seal::Asking { .. } | Seal::Recording { .. });
            back(by, recorded, why)
        }
        (Leaving::Lingering { looks, asking: false }, Outcome::Look) => {
            Next::act(Leaving::Lingering { looks, asking: true }, Act::Ask)
        }
        (Leaving::Lingering { looks, .. }, Outcome::Clients { clients, current }) => match clients {
            Clients::None if !current => Next::act(Leaving::Lingering { looks, asking: true }, Act::Ask),
            Clients::None => going(From::Lingering { looks }, nobody()),
            clients => later(looks, Ok(listed(clients))),
        },
        (Leaving::Lingering { looks, .. }, Outcome::Failed(why)) => later(looks, Err(why)),
        (Leaving::Going { clients, .. }, Outcome::Written) => Next::act(Leaving::Gone { clients }, Act::Unclaim),
        (Leaving::Gone { clients }, Outcome::Unclaimed) => {
            let answer = Some(Ok(clients.clone()));
            Next { leaving: Leaving::Gone { clients }, act: Act::Forget, answer }
        }
        (Leaving::Going { from, .. }, Outcome::Failed(why)) => match from {
            From::Withdrawal { .. } => back(By::Withdrawal, false, why),
            From::Operation(operation) => back(By::Operation(operation), true, why),
            From::Lingering { looks } => later(looks, Err(why)),
        },
        // Nothing is waited for.
        (leaving, _) => Next::act(leaving, Act::Rest),
    }
}

impl Next {
    fn act(leaving: Leaving, act: Act) -> Self {
        Self { leaving, act, answer: None }
    }

    /// Returns whether the export, if it exists, is revoked before anything else. A forced withdrawal while clients
    /// are connected is recorded first. For a volume whose rows are deleted, everything is removed at once.
    pub(super) fn closes(&self) -> bool {
        let first = matches!(self.act, Act::Write(Write::Lingers(_))) || matches!(self.leaving, Leaving::Gone { .. });
        self.leaving.is_closed() && !first
    }

    /// Returns what follows when the revocation failed. Nothing new begins then. What is running or recorded
    /// continues.
    pub(super) fn stuck(self, volume: VolumeId) -> Self {
        let why = Rejection::ExportStuck(volume);
        match self.act {
            Act::Ask | Act::Write(_) => next(volume, self.leaving, Outcome::Failed(why)),
            _ => Self { answer: self.answer.map(|answer| answer.and(Err(why))), ..self },
        }
    }

    fn kept(by: By, act: Act, answer: Result<Holders, Rejection>) -> Self {
        Self { leaving: Leaving::Sealed(by, Seal::Kept), act, answer: Some(answer) }
    }
}

/// Returns the clients with which an answer permits the seal or the release, or why it does not. `None`: the question
/// must be repeated, now that no new client can connect.
fn pass(volume: VolumeId, clients: Clients, current: bool, force: bool) -> Result<Option<Clients>, Rejection> {
    match clients {
        Clients::None => Ok(current.then_some(Clients::None)),
        clients if force => Ok(Some(clients)),
        Clients::Connected(clients) => Err(Rejection::ClientsConnected { volume, clients }),
        Clients::Unknown { why, candidates } => Err(Rejection::ClientsUnknown { volume, why, clients: candidates }),
    }
}

/// Returns what follows when no new client can connect and the present clients are permitted.
fn sealed(by: By, force: bool, clients: Clients) -> Next {
    match by {
        By::Withdrawal => released(by, force, clients),
        By::Operation(operation) => {
            let seal = Seal::Recording { clients: listed(clients) };
            Next::act(Leaving::Sealed(by, seal), Act::Write(Write::Seal(operation)))
        }
    }
}

fn released(by: By, force: bool, clients: Clients) -> Next {
    match clients {
        Clients::Connected(clients) => {
            let write = Act::Write(Write::Lingers(clients.clone()));
            Next::act(Leaving::Sealed(by, Seal::Insisting { clients }), write)
        }
        // Nobody is connected, or it is unknown when they are gone.
        clients => {
            let from = match by {
                By::Withdrawal => From::Withdrawal { force },
                By::Operation(operation) => From::Operation(operation),
            };
            going(from, listed(clients))
        }
    }
}

fn going(from: From, clients: Holders) -> Next {
    Next::act(Leaving::Going { from, clients }, Act::Write(Write::Rows))
}

fn later(looks: u32, answer: Result<Holders, Rejection>) -> Next {
    let leaving = Leaving::Lingering { looks: looks.saturating_add(1), asking: false };
    Next { leaving, act: Act::LookLater, answer: Some(answer) }
}

/// Returns what follows after a failure: a recorded seal stays, and anything else is given back.
fn back(by: By, recorded: bool, why: Rejection) -> Next {
    if recorded && by != By::Withdrawal {
        return Next::kept(by, Act::Rest, Err(why));
    }
    Next { leaving: Leaving::No, act: Act::GiveBack, answer: Some(Err(why)) }
}

fn nobody() -> Holders {
    Holders { clients: Vec::new(), exact: true }
}

/// Returns the clients of an answer for display.
fn listed(clients: Clients) -> Holders {
    match clients {
        Clients::None => nobody(),
        Clients::Connected(holders) => holders,
        // Any of these may be connected.
        Clients::Unknown { candidates, .. } => Holders { clients: candidates, exact: false },
    }
}

#[cfg(test)]
mod tests;
