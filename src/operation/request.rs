//! The requests for operations. Their types can hold only values that are allowed.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::identity::{VmId, VolumeId};

/// What a caller asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Request {
    /// Create a volume.
    Create(Create),
    /// Attach a volume as a data disk.
    Attach(Attach),
    /// Attach a volume as a VM's root disk.
    AttachRoot(Attach),
    /// Detach a volume.
    Detach(Detach),
    /// Detach a volume and delete it for good.
    Delete(Detach),
    /// Bring a volume back from the VM of a test failover.
    Cleanup(CleanUp),
    /// On record only: it can never be carried out.
    Unusable(Unusable),
}

/// A volume to create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Create {
    /// The name for people. In CloudStack the job's id is appended, so that the volume can be found again.
    pub name: Name,
    /// The size.
    pub size: Size,
    /// The disk offering, which selects the storage.
    pub disk_offering: ResourceId,
    /// The zone.
    pub zone: ResourceId,
}

/// A volume to attach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Which.
    pub volume: VolumeId,
    /// Where the volume is to be attached.
    pub to: Place,
}

/// A volume to detach or delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detach {
    /// Which.
    pub volume: VolumeId,
    /// Where the caller expects the volume to be attached. `None`: where it is on record here.
    pub from: Option<Place>,
    /// Detach even if NBD clients are connected, or if it is unknown whether any are.
    pub force: bool,
    /// How long to wait for connected clients to disconnect, in seconds.
    #[serde(default)]
    pub client_wait_seconds: u32,
}

/// A test failover to clean up after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanUp {
    /// The volume.
    pub volume: VolumeId,
    /// The VM of the test, which has the volume.
    pub test_vm: VmId,
    /// Whether to delete that VM afterwards.
    pub delete_vm: bool,
    /// Whether to cut the VM's power instead of asking its guest to stop.
    pub force: bool,
    /// The VM to which the volume comes back. Only this host's own is possible.
    #[serde(default)]
    pub back_to: Place,
}

/// A request that no operation can carry out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unusable {
    /// The kind that was asked for.
    pub kind: Kind,
    /// The volume, if the request names one.
    pub volume: Option<VolumeId>,
    /// What is wrong with the request.
    pub why: String,
}

/// Where a volume is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// This host, whatever the id of its VM is.
    #[default]
    Here,
    /// Another VM.
    Vm(VmId),
}

/// The kind of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// See [`Request::Create`].
    Create,
    /// See [`Request::Attach`].
    Attach,
    /// See [`Request::AttachRoot`].
    AttachRoot,
    /// See [`Request::Detach`].
    Detach,
    /// See [`Request::Delete`].
    Delete,
    /// See [`Request::Cleanup`].
    Cleanup,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Create, Self::Attach, Self::AttachRoot, Self::Detach, Self::Delete, Self::Cleanup];

    /// Returns the name in the API and the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Attach => "attach",
            Self::AttachRoot => "attach-root",
            Self::Detach => "detach",
            Self::Delete => "delete",
            Self::Cleanup => "cleanup",
        }
    }

    /// Returns the kind with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// Returns the time limit in seconds if the caller names none.
    pub const fn usual_limit(self) -> u32 {
        match self {
            // The VM of the test has to stop first.
            Self::Cleanup => 900,
            _ => 300,
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl Request {
    /// Returns the request's kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Create(_) => Kind::Create,
            Self::Attach(_) => Kind::Attach,
            Self::AttachRoot(_) => Kind::AttachRoot,
            Self::Detach(_) => Kind::Detach,
            Self::Delete(_) => Kind::Delete,
            Self::Cleanup(_) => Kind::Cleanup,
            Self::Unusable(unusable) => unusable.kind,
        }
    }

    /// Returns the volume that the request names.
    pub const fn volume(&self) -> Option<VolumeId> {
        match self {
            Self::Create(_) => None,
            Self::Attach(attach) | Self::AttachRoot(attach) => Some(attach.volume),
            Self::Detach(detach) | Self::Delete(detach) => Some(detach.volume),
            Self::Cleanup(cleanup) => Some(cleanup.volume),
            Self::Unusable(unusable) => unusable.volume,
        }
    }

    /// Returns the VM that the request names. `None`: none, or this host.
    pub const fn vm(&self) -> Option<VmId> {
        let place = match self {
            Self::Create(_) | Self::Unusable(_) => None,
            Self::Attach(attach) | Self::AttachRoot(attach) => Some(attach.to),
            Self::Detach(detach) | Self::Delete(detach) => detach.from,
            Self::Cleanup(cleanup) => Some(Place::Vm(cleanup.test_vm)),
        };
        match place {
            Some(Place::Vm(vm)) => Some(vm),
            Some(Place::Here) | None => None,
        }
    }

    /// Returns how long to wait for connected NBD clients, in seconds.
    pub const fn client_wait_seconds(&self) -> u32 {
        match self {
            Self::Detach(detach) | Self::Delete(detach) => detach.client_wait_seconds,
            _ => 0,
        }
    }

    /// Returns the same request with [`Place::Here`] in place of the own VM's id, so that equal requests compare as equal.
    #[must_use]
    pub fn seen_from(mut self, own: Option<VmId>) -> Self {
        let place = match &mut self {
            Self::Attach(attach) | Self::AttachRoot(attach) => Some(&mut attach.to),
            Self::Detach(detach) | Self::Delete(detach) => detach.from.as_mut(),
            Self::Cleanup(cleanup) => Some(&mut cleanup.back_to),
            Self::Create(_) | Self::Unusable(_) => None,
        };
        if let Some(place) = place
            && let (Place::Vm(vm), Some(own)) = (*place, own)
            && vm == own
        {
            *place = Place::Here;
        }
        self
    }
}

/// Why a value of a request is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// The name of a volume.
    #[error("a volume's name takes 1 to {MOST_OF_A_NAME} characters, none of them a control character; this one {0}")]
    Name(&'static str),
    /// The size of a volume.
    #[error("a volume's size takes from 1 to {most} bytes, not {0}", most = i64::MAX)]
    Size(u64),
    /// The id of an offering or a zone.
    #[error("{what:?} is no id of CloudStack's: it takes 1 to 64 letters, digits and hyphens")]
    Resource {
        /// The value that was given.
        what: String,
    },
    /// The idempotency key.
    #[error("an idempotency key takes 1 to 255 visible ASCII characters")]
    Key,
}

/// CloudStack's limit is 255 characters, and attachd appends a hyphen and a job's id.
const MOST_OF_A_NAME: usize = 200;

/// The name of a volume to create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// The id of an offering or a zone, usually a UUID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ResourceId(String);

/// The idempotency key: a name that the caller chooses for an operation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IdempotencyKey(String);

impl FromStr for Name {
    type Err = InvalidRequest;

    fn from_str(text: &str) -> Result<Self, InvalidRequest> {
        if text.trim().is_empty() {
            return Err(InvalidRequest::Name("is empty"));
        }
        if text.chars().count() > MOST_OF_A_NAME {
            return Err(InvalidRequest::Name("is longer"));
        }
        if text.chars().any(char::is_control) {
            return Err(InvalidRequest::Name("has one"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for ResourceId {
    type Err = InvalidRequest;

    fn from_str(text: &str) -> Result<Self, InvalidRequest> {
        let fits = (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let invalid = || InvalidRequest::Resource { what: text.chars().take(80).collect() };
        fits.then(|| Self(text.to_owned())).ok_or_else(invalid)
    }
}

impl FromStr for IdempotencyKey {
    type Err = InvalidRequest;

    fn from_str(text: &str) -> Result<Self, InvalidRequest> {
        let fits = (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        fits.then(|| Self(text.to_owned())).ok_or(InvalidRequest::Key)
    }
}

macro_rules! text {
    ($($name:ident),+) => { $(
        impl $name {
            /// Returns the text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidRequest;

            fn try_from(text: String) -> Result<Self, InvalidRequest> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&self.0)
            }
        }
    )+ };
}
text!(Name, ResourceId, IdempotencyKey);

/// The size of a volume to create.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Size(u64);

impl Size {
    /// Returns the size that was asked for, in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Returns the size that CloudStack creates, in GiB: rounded up.
    pub const fn gib(self) -> u64 {
        self.0.div_ceil(1 << 30)
    }
}

impl TryFrom<u64> for Size {
    type Error = InvalidRequest;

    fn try_from(bytes: u64) -> Result<Self, InvalidRequest> {
        // Whoever shows it has a sign.
        let fits = bytes > 0 && i64::try_from(bytes).is_ok();
        fits.then_some(Self(bytes)).ok_or(InvalidRequest::Size(bytes))
    }
}

impl From<Size> for u64 {
    fn from(size: Size) -> Self {
        size.0
    }
}
