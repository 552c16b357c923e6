//! Why a call has failed.

use std::fmt;
use std::time::Duration;

/// Why a call has no answer that helps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// CloudStack has understood the call and does not do it.
    #[error("CloudStack refuses it: {0}")]
    Refused(Refusal),
    /// CloudStack takes no more calls for a while (429). This one was not carried out.
    #[error("CloudStack takes no more calls for {} s", after.as_secs_f32().ceil())]
    Throttled {
        /// How long to wait before the next call, by its own word.
        after: Duration,
    },
    /// There is no answer.
    #[error("CloudStack cannot be reached: {why}")]
    Unreachable {
        /// Whether the call may have been carried out.
        sent: Sent,
        /// What happened, and what to do about it.
        why: String,
    },
    /// There is an answer, and it is none of CloudStack's API as it is known here. The call may have been carried out.
    #[error("the answer is not understood: {what}")]
    NotUnderstood {
        /// What was wrong with it, and what to do about it.
        what: String,
    },
    /// The call could not be made for want of something of this host's: keys, files, threads. Nothing was sent.
    #[error("CloudStack cannot be asked: {why}")]
    NotAble {
        /// What is missing, and what to do about it.
        why: String,
    },
}

impl CallError {
    /// Whether a call that changes something may have been carried out all the same: only CloudStack itself can tell. That is so
    /// also when it broke off in the middle for a fault of its own, as it does with a create whose job's id was used before.
    pub fn may_be_done(&self) -> bool {
        match self {
            Self::Unreachable { sent, .. } => *sent == Sent::Unclear,
            Self::NotUnderstood { .. } => true,
            Self::Refused(refusal) => refusal.kind == RefusalKind::Other,
            Self::Throttled { .. } | Self::NotAble { .. } => false,
        }
    }
}

/// Whether a call has reached CloudStack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Surely not.
    No,
    /// It may have, and then it may have been carried out.
    Unclear,
}

/// CloudStack does not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of refusal it is.
    pub kind: RefusalKind,
    /// CloudStack's own words: one line of bounded length.
    pub words: String,
    /// The status of the answer, or the error code of a job's result, which is the same number.
    pub http: u16,
    /// CloudStack's own code beside it (`cserrorcode`).
    pub code: Option<u32>,
    /// What else was seen that helps to understand it, and CloudStack does not say.
    pub hint: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.words, self.http)?;
        if let Some(code) = self.code {
            write!(f, ", code {code}")?;
        }
        f.write_str(")")?;
        self.hint.iter().try_for_each(|hint| write!(f, "; {hint}"))
    }
}

/// What kind of refusal it is. Texts change between versions of CloudStack, so this follows from its codes; where they say less
/// than is to be known, [`Cloud::volume`](super::Cloud::volume) tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// The key is wrong, has expired or is not valid yet, the signature is wrong, or the clocks differ: CloudStack does not tell
    /// these apart.
    NotLetIn,
    /// The key may not do this.
    NotAllowed,
    /// The thing is in a state in which this cannot be done.
    Conflict,
    /// Something else is being done with it.
    Busy,
    /// There is no such thing.
    Gone,
    /// There is no room: of a quota, of slots, of storage.
    Limit,
    /// A parameter is not what it should be.
    Invalid,
    /// Something else: mostly a fault of CloudStack's own.
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_been_carried_out_is_what_may_have_arrived_without_an_answer_that_is_understood() {
        let unreachable = |sent| CallError::Unreachable { sent, why: String::new() };
        assert!(unreachable(Sent::Unclear).may_be_done());
        assert!(CallError::NotUnderstood { what: String::new() }.may_be_done());
        let refused = |kind| {
            CallError::Refused(Refusal { kind, words: String::new(), http: 530, code: None, hint: None }).may_be_done()
        };
        assert!(refused(RefusalKind::Other) && !refused(RefusalKind::Conflict));
        for error in [
            unreachable(Sent::No),
            CallError::Throttled { after: Duration::ZERO },
            CallError::NotAble { why: String::new() },
        ] {
            assert!(!error.may_be_done(), "{error}");
        }
    }
}
