//! How far a volume is on its way out, and what the answer to "who is connected?" makes of that: pure.
//! [`super::withdraw`] does what is decided here.

use std::fmt;
use std::time::Instant;

use super::input::{Clients, Reply, Withdrawal};
use crate::helper_client::Holders;
use crate::volume::Reason;

/// Who asked for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct By(
    /// The user, from the socket's peer credentials.
    pub Option<u32>,
);

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(uid) => write!(f, "uid {uid}"),
            None => f.write_str("a user who is not known"),
        }
    }
}

/// Somebody who wants a volume withdrawn, and waits for the answer.
pub(crate) struct Caller {
    pub(super) by: By,
    /// Also while clients are connected.
    pub(super) force: bool,
    pub(super) reply: Reply<Withdrawal>,
}

/// How far a volume is on its way out.
#[derive(Default)]
pub(super) enum Leaving {
    /// It is not.
    #[default]
    No,
    /// It is being found out who is connected; it is served meanwhile, as before.
    Asking(Caller),
    /// Its export was taken away for this caller, and it is asked again who is connected. It may yet stay.
    Sealed(Caller),
    /// Clients are connected and the caller insists: that is being written down.
    Insisting { caller: Caller, clients: Holders, reason: Reason },
    /// Withdrawn by force, on record: it goes when its clients are gone.
    Lingering(Lingering),
    /// Its rows are being deleted, and then its claim.
    Going { caller: Option<Caller>, clients: Holders, before: Option<Lingering> },
}

/// A volume that was withdrawn by force waits for its clients to go.
#[derive(Default)]
pub(super) struct Lingering {
    /// Who wanted that; `None`: it was before the daemon's start.
    pub(super) by: Option<By>,
    /// How often it was looked whether they are gone.
    pub(super) looks: u32,
    pub(super) look: Look,
    /// Asks for the same again, and waits for the look that is under way.
    pub(super) caller: Option<Caller>,
}

/// The next look at a lingering volume's clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Look {
    /// Whenever something happens to the volume.
    #[default]
    Next,
    /// At this moment, or when something happens to it before.
    At(Instant),
    /// It is being asked.
    UnderWay,
}

impl Leaving {
    /// Nothing new is begun for it: it goes, or it is open whether it stays.
    pub(super) fn is_begun(&self) -> bool {
        !matches!(self, Self::No | Self::Asking(_))
    }

    /// Who waits for the answer.
    pub(super) fn caller(&self) -> Option<&Caller> {
        match self {
            Self::No => None,
            Self::Asking(caller) | Self::Sealed(caller) | Self::Insisting { caller, .. } => Some(caller),
            Self::Lingering(Lingering { caller, .. }) | Self::Going { caller, .. } => caller.as_ref(),
        }
    }

    /// By whose wish it leaves, as far as that is known.
    pub(super) fn by(&self) -> Option<By> {
        match self {
            Self::No | Self::Asking(_) => None,
            Self::Lingering(lingering) | Self::Going { before: Some(lingering), .. } => lingering.by,
            _ => self.caller().map(|caller| caller.by),
        }
    }

    /// It is on record that it goes.
    pub(super) fn lingers(&self) -> bool {
        matches!(self, Self::Lingering(_))
    }

    /// When its clients are to be looked at again.
    pub(super) fn look_at(&self) -> Option<Instant> {
        match self {
            Self::Lingering(Lingering { look: Look::At(at), .. }) => Some(*at),
            _ => None,
        }
    }
}

/// What is known when the answer is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer<'a> {
    /// The answer.
    pub(super) clients: &'a Clients,
    /// It was asked after the last time at which a client could have come.
    pub(super) current: bool,
    /// It is on record that the volume goes.
    pub(super) lingers: bool,
    /// A caller insists.
    pub(super) force: bool,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Take the export away, so that nobody new can come, and ask once more.
    SealAndAsk,
    /// Nobody uses it, or nobody can say and the caller insists: it goes.
    Go,
    /// The caller hears who is connected, and the volume stays.
    Refuse,
    /// Write down that it goes when its clients are gone.
    Insist,
    /// It lingers on.
    LookLater,
}

/// What the answer makes of a volume that is asked about.
pub(super) fn next(answer: Answer<'_>) -> Next {
    match answer.clients {
        Clients::None if !answer.current => Next::SealAndAsk,
        Clients::None => Next::Go,
        Clients::Connected(_) | Clients::Unknown { .. } if answer.lingers => Next::LookLater,
        Clients::Connected(_) if answer.force => Next::Insist,
        // Nobody could say when they are gone.
        Clients::Unknown { .. } if answer.force => Next::Go,
        Clients::Connected(_) | Clients::Unknown { .. } => Next::Refuse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found() -> impl Strategy<Value = Clients> {
        let holders = |exact| Holders { clients: vec!["127.0.0.1:1".into()], exact };
        prop_oneof![
            Just(Clients::None),
            any::<bool>().prop_map(move |exact| Clients::Connected(holders(exact))),
            Just(Clients::Unknown { why: "silent".into(), candidates: Vec::new() }),
        ]
    }

    proptest! {
        /// Invariant 16.
        #[test]
        fn no_volume_goes_from_under_a_client_and_none_goes_unforced_on_a_guess(
            clients in found(), current: bool, lingers: bool, force: bool,
        ) {
            let next = next(Answer { clients: &clients, current, lingers, force });
            if next == Next::Go {
                prop_assert!(!matches!(clients, Clients::Connected(_)), "there is a client");
                prop_assert!(clients == Clients::None && current || force, "nobody insists, and it is not certain");
            }
            prop_assert!(next != Next::Insist || force && !lingers);
            // What is on record is not taken back.
            prop_assert!(next != Next::Refuse || !lingers && !force);
        }

        /// Else a withdrawal would never come to its end.
        #[test]
        fn only_an_old_answer_of_nobody_is_asked_for_again(
            clients in found(), current: bool, lingers: bool, force: bool,
        ) {
            let next = next(Answer { clients: &clients, current, lingers, force });
            prop_assert_eq!(next == Next::SealAndAsk, clients == Clients::None && !current);
            prop_assert!(next != Next::LookLater || lingers);
        }
    }

    #[test]
    fn who_asked_is_named_or_said_to_be_unknown() {
        assert_eq!(By(Some(1000)).to_string(), "uid 1000");
        assert_eq!(By(None).to_string(), "a user who is not known");
    }
}
