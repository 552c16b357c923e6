//! Why a call has failed.

use std::fmt;
use std::time::Duration;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// CloudStack has understood the call and refuses it.
    #[error("CloudStack refuses it: {0}")]
    Refused(Refusal),
    /// CloudStack accepts no calls for a while (429). This one was not carried out.
    #[error("CloudStack takes no more calls for {} s", after.as_secs_f32().ceil())]
    Throttled {
        /// How long CloudStack asks to wait before the next call.
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
    /// The answer is not one of CloudStack's API as attachd knows it. The call may have been carried out.
    #[error("the answer is not understood: {what}")]
    NotUnderstood {
        /// What was wrong with it, and what to do about it.
        what: String,
    },
    /// Nothing was sent: something on this host cannot be used, like the files of the keys.
    #[error("CloudStack cannot be asked: {why}")]
    NotAble {
        /// What cannot be used, and what to do about it.
        why: String,
    },
}

impl CallError {
    /// Returns whether a call that changes something may have been carried out all the same; then only CloudStack can tell. That
    /// includes internal errors of CloudStack, which can come after a part of the work: a create whose job id was used before
    /// makes the volume and then fails.
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
    /// It has certainly not.
    No,
    /// It may have, and may have been carried out.
    Unclear,
}

/// CloudStack refuses a call or the work of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The kind of refusal.
    pub kind: RefusalKind,
    /// CloudStack's own words: one line of bounded length.
    pub words: String,
    /// The status of the answer, or the error code of a job's result, which is the same number.
    pub http: u16,
    /// CloudStack's own code beside it (`cserrorcode`).
    pub code: Option<u32>,
    /// What else attachd has seen that helps to understand the refusal.
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

/// The kind of a refusal. Texts change between versions of CloudStack, so the kind follows mostly from the codes. What state a
/// volume is in tells [`Cloud::volume`](super::Cloud::volume) only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// The key is wrong, has expired or is not valid yet, the signature is wrong, or the clocks differ: CloudStack does not tell
    /// these apart.
    NotLetIn,
    /// The key may not do this.
    NotAllowed,
    /// The state of the volume or VM does not allow it.
    Conflict,
    /// Something else is being done with it, or a part of CloudStack is not available at the moment.
    Busy,
    /// CloudStack knows no such thing.
    Gone,
    /// A quota, the number of slots or the storage is used up.
    Limit,
    /// A parameter is wrong.
    Invalid,
    /// Another one, mostly an internal error of CloudStack.
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
