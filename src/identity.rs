//! Identifiers: the rules from a CloudStack volume id to a serial, a by-id link and an export name. Pure.
//!
//! CloudStack's KVM agent gives a disk as its serial the volume's UUID without hyphens, cut to 20 characters
//! (`LibvirtComputingResource.diskUuidToSerial`). udev makes the by-id link from it. Only 80 of 128 bits remain, so
//! two volumes can have the same serial. The matching code must check for that; the types here only enforce the rule.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// The length of a [`Serial`] in characters: virtio-blk has 20 bytes for it (`VIRTIO_BLK_ID_BYTES`).
pub const SERIAL_LEN: usize = 20;

/// The prefix of every export name; callers remove it to get the volume id.
pub const EXPORT_PREFIX: &str = "migration-vol-";

/// A CloudStack volume's UUID. Shown and compared in lower case with hyphens.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeId(Uuid);

/// The id of an operation: a request that a caller can follow. Shown and compared like a volume's id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OperationId(Uuid);

/// The id of a CloudStack VM. Shown and compared like a volume's id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VmId(Uuid);

/// The id of a CloudStack job, which attachd chooses before it requests the job. Shown in lower case with hyphens,
/// because CloudStack accepts no other spelling.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(Uuid);

/// The serial of a disk: exactly 20 lower-case hexadecimal characters.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial([u8; SERIAL_LEN]);

/// The text is not a volume id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a volume id: it takes a UUID with hyphens, like b3bb9310-1b59-4f62-97e8-cefffdfe3804")]
pub struct NotAVolumeId(pub String);

/// The text is not an operation's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the id of an operation: it takes a UUID with hyphens")]
pub struct NotAnOperationId(pub String);

/// The text is not a VM's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a VM id: it takes a UUID with hyphens, as CloudStack shows it")]
pub struct NotAVmId(pub String);

/// The text is not a job's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the id of a job: it takes a UUID with hyphens")]
pub struct NotAJobId(pub String);

/// The text is not a serial.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a serial: it takes exactly {SERIAL_LEN} characters of 0-9 and a-f, like b3bb93101b594f6297e8")]
pub struct NotASerial(pub String);

impl VolumeId {
    /// The lowest id in order.
    pub const MIN: Self = Self(Uuid::nil());

    /// Returns the serial that the hypervisor gives this volume's disk.
    pub fn serial(&self) -> Serial {
        let mut text = [0; uuid::fmt::Simple::LENGTH];
        self.0.simple().encode_lower(&mut text);
        let mut serial = [0; SERIAL_LEN];
        serial.copy_from_slice(&text[..SERIAL_LEN]);
        Serial(serial)
    }

    /// Returns the name of the volume's export.
    pub fn export_name(&self) -> String {
        format!("{EXPORT_PREFIX}{self}")
    }

    /// Returns the volume of an export name; `None` if the name is not attachd's.
    pub fn from_export_name(name: &str) -> Option<Self> {
        let volume: Self = name.strip_prefix(EXPORT_PREFIX)?.parse().ok()?;
        // Only this exact spelling is attachd's: for an NBD server, a name in capitals would be another export.
        (volume.export_name() == name).then_some(volume)
    }
}

impl From<Uuid> for JobId {
    fn from(chosen: Uuid) -> Self {
        Self(chosen)
    }
}

impl From<Uuid> for OperationId {
    fn from(chosen: Uuid) -> Self {
        Self(chosen)
    }
}

macro_rules! from_hyphenated {
    ($($id:ident or $error:ident),+) => { $(
        impl FromStr for $id {
            type Err = $error;

            fn from_str(text: &str) -> Result<Self, $error> {
                hyphenated(text).map(Self).ok_or_else(|| $error(text.chars().take(80).collect()))
            }
        }

        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )+ };
}
from_hyphenated!(VolumeId or NotAVolumeId, OperationId or NotAnOperationId, VmId or NotAVmId, JobId or NotAJobId);

/// Parses a UUID with hyphens. `Uuid` alone also accepts braces, URNs and no hyphens, which CloudStack never writes.
fn hyphenated(text: &str) -> Option<Uuid> {
    Uuid::try_parse(text).ok().filter(|_| text.len() == uuid::fmt::Hyphenated::LENGTH)
}

impl Serial {
    /// Returns the serial as text.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl FromStr for Serial {
    type Err = NotASerial;

    fn from_str(text: &str) -> Result<Self, NotASerial> {
        let bytes: [u8; SERIAL_LEN] =
            text.as_bytes().try_into().map_err(|_| NotASerial(text.chars().take(80).collect()))?;
        if bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            Ok(Self(bytes))
        } else {
            Err(NotASerial(text.to_owned()))
        }
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Implements serde through the text form, so that a bad value gets the message of its own error type.
macro_rules! as_text {
    ($($name:ty),+) => { $(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )+ };
}
as_text!(VolumeId, Serial, OperationId, VmId, JobId);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VOLUME: &str = "b3bb9310-1b59-4f62-97e8-cefffdfe3804";

    #[test]
    fn a_volume_id_gives_its_serial_and_export_name() {
        let volume: VolumeId = VOLUME.parse().unwrap();
        assert_eq!(volume.serial().as_str(), "b3bb93101b594f6297e8");
        assert_eq!(volume.export_name(), format!("migration-vol-{VOLUME}"));
        assert_eq!(VolumeId::from_export_name(&volume.export_name()), Some(volume));
    }

    #[test]
    fn upper_case_is_accepted_and_shown_in_lower_case() {
        let volume: VolumeId = VOLUME.to_uppercase().parse().unwrap();
        assert_eq!(volume.to_string(), VOLUME);
        assert_eq!(format!("{volume:?} {:?}", volume.serial()), format!("{VOLUME} b3bb93101b594f6297e8"));
    }

    #[test]
    fn any_other_text_is_refused_with_an_example_of_a_uuid() {
        for text in [
            "",
            "vol-1",
            "b3bb93101b594f6297e8cefffdfe3804",
            "{b3bb9310-1b59-4f62-97e8-cefffdfe3804}",
            "urn:uuid:b3bb9310-1b59-4f62-97e8-cefffdfe3804",
            "b3bb9310-1b59-4f62-97e8-cefffdfe380g",
            " b3bb9310-1b59-4f62-97e8-cefffdfe3804",
            "b3bb93101-b59-4f62-97e8-cefffdfe3804",
        ] {
            let error = text.parse::<VolumeId>().unwrap_err().to_string();
            assert!(error.contains(VOLUME), "{text}: {error}");
        }
    }

    #[test]
    fn an_export_name_in_another_spelling_is_not_ours() {
        for name in [
            format!("migration-vol-{}", VOLUME.to_uppercase()),
            format!("migration-vm-{VOLUME}"),
            VOLUME.to_owned(),
            "migration-vol-".to_owned(),
        ] {
            assert_eq!(VolumeId::from_export_name(&name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_serial_is_the_first_20_hex_digits_of_any_volume(bits in any::<u128>()) {
            let uuid = Uuid::from_u128(bits);
            let volume: VolumeId = uuid.to_string().parse().unwrap();
            let simple = uuid.simple().to_string();
            let serial = volume.serial();
            prop_assert_eq!(serial.as_str(), &simple[..20]);
            prop_assert_eq!(serial.as_str().parse::<Serial>().unwrap(), serial);
        }

        #[test]
        fn only_20_lower_case_hex_characters_are_a_serial(text in "\\PC{0,24}|[0-9a-fA-F]{18,22}") {
            let good = text.len() == 20 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            prop_assert_eq!(text.parse::<Serial>().is_ok(), good);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in any::<String>()) {
            let _ = text.parse::<VolumeId>();
            let _ = VolumeId::from_export_name(&text);
        }
    }
}
