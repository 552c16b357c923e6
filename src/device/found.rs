//! The outcome of a read. There are always three outcomes, because what could not be read may still exist (invariant
//! 13).

use std::io;

use serde::{Deserialize, Serialize};

/// The outcome of a read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Found<T> {
    /// It exists.
    Here(T),
    /// It does not exist: the kernel said so.
    Gone,
    /// The read failed for this reason. It may exist.
    Unknown(String),
}

impl<T> Found<T> {
    /// Returns the value, if it exists.
    pub fn here(self) -> Option<T> {
        match self {
            Self::Here(found) => Some(found),
            Self::Gone | Self::Unknown(_) => None,
        }
    }

    /// Returns whether it exists.
    pub fn is_here(&self) -> bool {
        matches!(self, Self::Here(_))
    }

    /// Returns whether it certainly does not exist.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone)
    }
}

/// Converts a result of [`crate::procfs::unless_gone`]: each remaining error means "unknown".
impl<T> From<io::Result<Option<T>>> for Found<T> {
    fn from(result: io::Result<Option<T>>) -> Self {
        match result {
            Ok(Some(found)) => Self::Here(found),
            Ok(None) => Self::Gone,
            Err(error) => Self::Unknown(error.to_string()),
        }
    }
}
