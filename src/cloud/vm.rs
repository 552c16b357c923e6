//! VMs as CloudStack shows them.

use std::fmt;
use std::str::FromStr;

use crate::identity::VmId;

/// A VM as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudVm {
    /// Which.
    pub id: VmId,
    /// What people call it.
    pub name: String,
    /// Where it stands.
    pub state: VmState,
    /// The addresses of its network interfaces.
    pub macs: Vec<Mac>,
}

/// Where a VM stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmState {
    /// It runs.
    Running,
    /// It does not run.
    Stopped,
    /// It begins to run.
    Starting,
    /// It is being stopped.
    Stopping,
    /// It moves to another host.
    Migrating,
    /// Another one, by CloudStack's name.
    Other(String),
}

impl VmState {
    /// The state of that name.
    pub fn named(name: &str) -> Self {
        match name {
            "Running" => Self::Running,
            "Stopped" => Self::Stopped,
            "Starting" => Self::Starting,
            "Stopping" => Self::Stopping,
            "Migrating" => Self::Migrating,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(name) => f.pad(name),
            // The variants are named as in CloudStack.
            known => f.pad(&format!("{known:?}")),
        }
    }
}

/// The address of a network interface.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac([u8; 6]);

impl Mac {
    /// Returns whether it is the address of one interface: not all zeros, and no group address.
    pub fn is_of_one(&self) -> bool {
        self.0 != [0; 6] && self.0[0] & 1 == 0
    }
}

/// The text is no MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a MAC address like 02:00:4c:5a:00:01")]
pub struct NotAMac(pub String);

impl FromStr for Mac {
    type Err = NotAMac;

    fn from_str(text: &str) -> Result<Self, NotAMac> {
        let parts = text.split(':').map(|part| {
            let is_pair = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            is_pair.then(|| u8::from_str_radix(part, 16).ok()).flatten()
        });
        let bytes: Option<Vec<u8>> = parts.collect();
        let mac = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
        mac.map(Self).ok_or_else(|| NotAMac(text.chars().take(80).collect()))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if index == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_address_is_read_in_either_case_and_shown_in_one() {
        let mac: Mac = "02:00:4C:5a:00:01".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:4c:5a:00:01");
        assert!(mac.is_of_one());
        for none in ["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"] {
            assert!(!none.parse::<Mac>().unwrap().is_of_one(), "{none}");
        }
        for wrong in
            ["", "02:00:4c:5a:00", "02:00:4c:5a:00:01:02", "02-00-4c-5a-00-01", "2:0:4c:5a:0:1", "+2:00:4c:5a:00:01"]
        {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic_and_what_is_shown_is_read_again(text in any::<String>(), bytes in any::<[u8; 6]>()) {
            let _ = text.parse::<Mac>();
            prop_assert_eq!(Mac(bytes).to_string().parse(), Ok(Mac(bytes)));
        }
    }
}
