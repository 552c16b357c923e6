//! Enums of names, and values whose name this version may not know.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A value of a table, identified by its name.
pub trait Listed: Copy {
    /// Returns the name, for programs.
    fn name(self) -> &'static str;
    /// Returns the value with this name.
    fn from_name(name: &str) -> Option<Self>;
}

/// A value that was read by its name. The store or the other end of the API may be of another version, with other
/// names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named<T> {
    /// A value of this version's table.
    Known(T),
    /// A name of another version.
    Other(String),
}

impl<T: Listed> Named<T> {
    /// Returns the name.
    pub fn name(&self) -> &str {
        match self {
            Self::Known(known) => known.name(),
            Self::Other(name) => name,
        }
    }

    /// Returns the value, if this version knows it.
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
            /// Every value, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Returns the name, for programs.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// Returns the value with this name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|known| known.name() == name)
            }
        }

        impl $crate::reason::named::Listed for $type {
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
