//! Detects whether the store answers. This is checked from outside, because a thread that hangs in the kernel cannot
//! report it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::{SILENT_AFTER, StoreError};
use crate::clock;

/// The state shared by the task and all handles.
#[derive(Clone)]
pub(super) struct Watch(Arc<Inner>);

struct Inner {
    path: PathBuf,
    /// When the question was asked that has no answer yet.
    asked: Mutex<Option<(Instant, Timestamp)>>,
}

/// A question to SQLite. It counts as answered when this value is dropped.
pub(super) struct OpenQuestion<'a>(&'a Watch);

impl Drop for OpenQuestion<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

impl Watch {
    pub(super) fn new(path: &Path) -> Self {
        Self(Arc::new(Inner { path: path.to_owned(), asked: Mutex::new(None) }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0.path
    }

    /// Marks that SQLite is asked something from now on. There is one question at a time.
    pub(super) fn ask(&self) -> OpenQuestion<'_> {
        self.set(Some((Instant::now(), clock::wall())));
        OpenQuestion(self)
    }

    fn set(&self, asked: Option<(Instant, Timestamp)>) {
        *self.0.asked.lock().unwrap_or_else(PoisonError::into_inner) = asked;
    }

    fn asked(&self) -> Option<(Instant, Timestamp)> {
        *self.0.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the error to give when there was no answer for longer than the time limit.
    pub(super) fn silent(&self) -> Option<StoreError> {
        let (_, since) = self.asked().filter(|(begun, _)| begun.elapsed() >= SILENT_AFTER)?;
        Some(StoreError::Silent { path: self.0.path.clone(), since })
    }

    /// Returns the time until [`Watch::silent`] can change.
    pub(super) fn next_look(&self) -> Duration {
        self.asked().map_or(SILENT_AFTER, |(begun, _)| SILENT_AFTER.saturating_sub(begun.elapsed()))
    }

    pub(super) fn crowded(&self) -> StoreError {
        StoreError::Crowded { path: self.0.path.clone() }
    }
}
