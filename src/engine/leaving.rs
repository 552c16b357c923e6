//! How far a volume is on its way out, and what is next: pure. [`super::leave`] does what is decided here.
//!
//! A volume is sealed first: its export is taken away, so that nobody new can come, and who is connected decides whether
//! it stays away. An operation's seal is put on record, and the volume stays sealed until that operation unseals or
//! releases it. A withdrawal is a seal that is released at once. A released volume goes: its rows, then its claim. With
//! `force` a volume whose clients are known waits (lingers), on record, until they are gone.

use super::answers::{Clients, Rejection};
use crate::helper_client::Holders;
use crate::identity::{OperationId, VolumeId};
use crate::volume::By;

/// What a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// Take the export away, and keep it away. `force`: also while clients are connected, or may be.
    Seal { by: By, force: bool },
    /// Give the export back.
    Unseal(OperationId),
    /// Let a sealed volume go for good.
    Release { operation: OperationId, force: bool },
}

/// How far a volume is on its way out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Leaving {
    /// It is not.
    #[default]
    No,
    /// It is being found out who is connected; it is served meanwhile, as before.
    Asking { by: By, force: bool },
    /// Its export is taken away.
    Sealed(By, Seal),
    /// Withdrawn by force, on record: it goes when its clients are gone. `looks`: how often that was looked for;
    /// `asking`: it is just being asked.
    Lingering { looks: u32, asking: bool },
    /// Its rows are being deleted.
    Going { from: From, clients: Holders },
    /// Its rows are gone: nothing brings it back. What was prepared for its export goes, and its claim.
    Gone { clients: Holders },
}

/// How far a seal is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seal {
    /// It is asked once more who is connected. The export may yet be given back.
    Asking { force: bool },
    /// An operation's seal is being put on record.
    Recording { clients: Holders },
    /// It is on record.
    Kept,
    /// On record; it is asked who is connected, for the operation seals once more.
    Again { force: bool },
    /// On record; it is asked who is connected before it is released.
    Releasing { force: bool },
    /// It is being put on record that it is sealed no more.
    Unsealing,
    /// Clients are connected, and it is released by force: it is being put on record that it goes when they are gone.
    Insisting { clients: Holders },
}

/// What a volume that goes was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// Sealed for a withdrawal.
    Withdrawal { force: bool },
    /// Sealed by this operation, on record.
    Operation(OperationId),
    /// It lingered, and was looked at so often.
    Lingering { looks: u32 },
}

/// What has come of the last [`Act`], or has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The answer to who is connected. `current`: nobody can have come since it was asked.
    Clients { clients: Clients, current: bool },
    /// What was to be written is durable.
    Written,
    /// It is not, or the export could not be taken away.
    Failed(Rejection),
    /// The claim is gone.
    Unclaimed,
    /// Its time has come, or something happened to its disk.
    Look,
}

/// What follows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Next {
    /// How far the volume is now.
    pub(super) leaving: Leaving,
    /// What is to be done.
    pub(super) act: Act,
    /// What whoever waits is answered, after that: who is (or may be) still connected, or why it was not done.
    pub(super) answer: Option<Result<Holders, Rejection>>,
}

/// What is to be done. The export is taken away before, if [`Next::closes`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// Nothing.
    Rest,
    /// Ask who is connected.
    Ask,
    /// Make this durable.
    Write(Write),
    /// Tell that it is sealed.
    TellSealed,
    /// Tell that it lingers, with these clients, and look again later.
    TellLingering(Holders),
    /// Look again later.
    LookLater,
    /// It stays: bring it back to where it was.
    GiveBack,
    /// Remove what was prepared for its export, and its claim.
    Unclaim,
    /// Forget it.
    Forget,
}

/// What is to be made durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Write {
    /// It is sealed by this operation.
    Seal(OperationId),
    /// It is sealed no more.
    Unseal(OperationId),
    /// It was withdrawn by force, and goes when its clients are gone.
    Lingers(Holders),
    /// Its rows go.
    Rows,
}

impl Leaving {
    /// Nobody new is let in, and nothing new is begun for it.
    pub(super) fn is_closed(&self) -> bool {
        !matches!(self, Self::No | Self::Asking { .. })
    }

    /// It is on record that nobody is let in.
    pub(super) fn is_on_record(&self) -> bool {
        match self {
            Self::Lingering { .. } | Self::Going { from: From::Lingering { .. } | From::Operation(_), .. } => true,
            Self::Sealed(By::Operation(_), seal) => !matches!(seal, Seal::Asking { .. } | Seal::Recording { .. }),
            _ => false,
        }
    }

    /// The operation that has sealed it, or is about to.
    pub(super) fn operation(&self) -> Option<OperationId> {
        match self {
            Self::Asking { by: By::Operation(operation), .. }
            | Self::Sealed(By::Operation(operation), _)
            | Self::Going { from: From::Operation(operation), .. } => Some(*operation),
            _ => None,
        }
    }

    /// It is withdrawn, or about to be: its claim may go at any moment.
    pub(super) fn may_go(&self) -> bool {
        match self {
            Self::No | Self::Asking { .. } => false,
            Self::Sealed(by, seal) => *by == By::Withdrawal || matches!(seal, Seal::Insisting { .. }),
            Self::Lingering { .. } | Self::Going { .. } | Self::Gone { .. } => true,
        }
    }
}

/// What a store remembers.
pub(super) fn remembered(sealed: Option<By>) -> Leaving {
    match sealed {
        None => Leaving::No,
        Some(By::Withdrawal) => Leaving::Lingering { looks: 0, asking: false },
        Some(by @ By::Operation(_)) => Leaving::Sealed(by, Seal::Kept),
    }
}

/// What becomes of a call: how far the volume is now and what is to be done, or the answer at once.
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
        // Asked for before, and the answer was lost.
        (Leaving::No, Call::Unseal(_)) => Err(Ok(nobody())),
        // Withdrawn by force before: the same answer again.
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
        // Another call, or a look of attachd's own, is at it.
        _ => Err(Err(Rejection::Leaving(volume))),
    }
}

/// What follows from what has come of the last act.
pub(super) fn next(volume: VolumeId, leaving: Leaving, outcome: Outcome) -> Next {
    match (leaving, outcome) {
        (Leaving::Asking { by, force }, Outcome::Clients { clients, current }) => {
            match pass(volume, clients, current, force) {
                Ok(None) => Next::act(Leaving::Sealed(by, Seal::Asking { force }), Act::Ask),
                Ok(Some(clients)) => sealed(by, force, clients),
                // It was served all the time.
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

    /// The export is taken away, should it be there, before anything else is done. A withdrawal by force while clients are
    /// connected is put on record first; of a volume whose rows are gone everything goes at once.
    pub(super) fn closes(&self) -> bool {
        let first = matches!(self.act, Act::Write(Write::Lingers(_))) || matches!(self.leaving, Leaving::Gone { .. });
        self.leaving.is_closed() && !first
    }

    /// What follows when that could not be done. Nothing is begun then; what is under way or on record goes on.
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

/// Whether an answer lets a volume be sealed or released, and with whom connected; `None`: it is to be asked once more,
/// now that nobody new can come.
fn pass(volume: VolumeId, clients: Clients, current: bool, force: bool) -> Result<Option<Clients>, Rejection> {
    match clients {
        Clients::None => Ok(current.then_some(Clients::None)),
        clients if force => Ok(Some(clients)),
        Clients::Connected(clients) => Err(Rejection::ClientsConnected { volume, clients }),
        Clients::Unknown { why, candidates } => Err(Rejection::ClientsUnknown { volume, why, clients: candidates }),
    }
}

/// Nobody new can come, and who is connected may be.
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
        // Nobody, or nobody could say when they are gone.
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

/// It could not be done: what is on record stays, anything else is given back.
fn back(by: By, recorded: bool, why: Rejection) -> Next {
    if recorded && by != By::Withdrawal {
        return Next::kept(by, Act::Rest, Err(why));
    }
    Next { leaving: Leaving::No, act: Act::GiveBack, answer: Some(Err(why)) }
}

fn nobody() -> Holders {
    Holders { clients: Vec::new(), exact: true }
}

/// The clients of an answer, for whoever wants to see them.
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
