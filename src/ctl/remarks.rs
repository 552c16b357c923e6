//! What is said beside a step.

use crate::wire::EventView;

/// The particulars of a step in one line.
pub(super) fn remarks(event: &EventView) -> String {
    match &event.reason {
        // A step that led to the reason repeats its message.
        Some(reason) if event.detail.is_empty() || event.detail.contains(&reason.message) => {
            format!("{}: {}", reason.code, reason.message)
        }
        Some(reason) => format!("{} ({})", event.detail, reason.code),
        None => event.detail.clone(),
    }
}
