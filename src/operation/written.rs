//! A request as a caller of the predecessor's routes wrote it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A request as a caller of the predecessor's routes wrote it: the fields that such a request has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Written(pub(super) Map<String, Value>);

impl From<Map<String, Value>> for Written {
    fn from(fields: Map<String, Value>) -> Self {
        Self(fields)
    }
}
