//! What the engine does not do, in an operation's words.

use crate::engine::Rejection;
use crate::operation::Fault;
use crate::reason::Code;

/// Why an operation cannot go on that the engine has refused something.
pub(super) fn of(rejection: &Rejection) -> Fault {
    let code = match rejection {
        Rejection::Unknown(_) => Code::NotServed,
        Rejection::Differs { .. } => Code::IntentDiffers,
        Rejection::SerialTaken { .. } => Code::SerialTaken,
        Rejection::InUseByHost { .. } => Code::InUseByHost,
        Rejection::ClientsConnected { .. } => Code::ClientsConnected,
        Rejection::ClientsUnknown { .. } => Code::ClientsUnknown,
        Rejection::ExportStuck(_) => Code::ExportStuck,
        Rejection::Leaving(_) => Code::BeingWithdrawn,
        Rejection::Sealed { .. } | Rejection::NotSealed { .. } => Code::Sealed,
        Rejection::TooMany { .. } => Code::TooManyIntents,
        Rejection::Store(error) => error.code(),
        Rejection::NotDurable(_) => Code::StoreFailed,
        Rejection::NotClaimed(_) => Code::ClaimsFolder,
    };
    Fault::new(code, rejection.to_string())
}

/// Whether clients of the volume are in the way, or may be.
pub(super) fn is_of_clients(rejection: &Rejection) -> bool {
    matches!(rejection, Rejection::ClientsConnected { .. } | Rejection::ClientsUnknown { .. })
}

/// Whether it may be otherwise a moment later.
pub(super) fn passes(rejection: &Rejection) -> bool {
    matches!(
        rejection,
        Rejection::Leaving(_)
            | Rejection::ExportStuck(_)
            | Rejection::Store(_)
            | Rejection::NotDurable(_)
            | Rejection::NotClaimed(_)
    )
}
