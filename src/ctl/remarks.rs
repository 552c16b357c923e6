//! The details of a step.

use crate::wire::EventView;

/// Returns the details of a step in one line.
pub(super) fn remarks(event: &EventView) -> String {
    match &event.reason {
        // The detail of the step that led to the reason repeats the reason's message.
        Some(reason) if event.detail.is_empty() || event.detail.contains(&reason.message) => {
            format!("{}: {}", reason.code, reason.message)
        }
        Some(reason) => format!("{} ({})", event.detail, reason.code),
        None => event.detail.clone(),
    }
}
