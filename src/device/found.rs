//! What a reading has found: three outcomes and never two, for what could not be read may be there (invariant 13).

use std::io;

use serde::{Deserialize, Serialize};

/// The outcome of a reading.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Found<T> {
    /// It is there.
    Here(T),
    /// It is not there: the kernel said so.
    Gone,
    /// It could not be read, for this reason. It may be there.
    Unknown(String),
}

impl<T> Found<T> {
    /// What was found, if it was.
    pub fn here(self) -> Option<T> {
        match self {
            Self::Here(found) => Some(found),
            Self::Gone | Self::Unknown(_) => None,
        }
    }

    /// It is there.
    pub fn is_here(&self) -> bool {
        matches!(self, Self::Here(_))
    }

    /// It is not there, for certain.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone)
    }
}

/// Of [`crate::procfs::unless_gone`]'s shape: whatever is left as an error says that it is unknown.
impl<T> From<io::Result<Option<T>>> for Found<T> {
    fn from(result: io::Result<Option<T>>) -> Self {
        match result {
            Ok(Some(found)) => Self::Here(found),
            Ok(None) => Self::Gone,
            Err(error) => Self::Unknown(error.to_string()),
        }
    }
}
