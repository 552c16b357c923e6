//! Names of a table: an enum for each table, and what was read by a name that this version may not know.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a table lists by its name.
pub trait Listed: Copy {
    /// Its name, for programs.
    fn name(self) -> &'static str;
    /// The one of that name.
    fn from_name(name: &str) -> Option<Self>;
}

/// What was read by its name: the store and the API's other end may be of another version, with names of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named<T> {
    /// One of this table.
    Known(T),
    /// Another version's.
    Other(String),
}

impl<T: Listed> Named<T> {
    /// The name.
    pub fn name(&self) -> &str {
        match self {
            Self::Known(known) => known.name(),
            Self::Other(name) => name,
        }
    }

    /// If this version knows it.
    pub fn known(&self) -> Option<T> {
        match self {
            Self::Known(known) => Some(*known),
            Self::Other(_) => None,
        }
    }
}

impl<T: Listed> From<T> for Named<T> {
    fn from(known: T) -> Self {
        Self::Known(known)
    }
}

impl<T: Listed> From<&str> for Named<T> {
    fn from(name: &str) -> Self {
        T::from_name(name).map_or_else(|| Self::Other(name.to_owned()), Self::Known)
    }
}

impl<T: Listed> std::fmt::Display for Named<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl<T: Listed> Serialize for Named<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de, T: Listed> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from(&*String::deserialize(deserializer)?))
    }
}

/// Declares an enum of names.
macro_rules! names {
    ($(#[$about:meta])* $type:ident { $($variant:ident $name:literal $meaning:literal)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $type {
            $(#[doc = $meaning] $variant,)+
        }

        impl $type {
            /// Every one, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Its name, for programs.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The one of that name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|known| known.name() == name)
            }
        }

        impl $crate::reason::Listed for $type {
            fn name(self) -> &'static str {
                Self::name(self)
            }

            fn from_name(name: &str) -> Option<Self> {
                Self::from_name(name)
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }
    };
}

pub(super) use names;
