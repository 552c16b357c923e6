//! What can be asked for, in types that hold nothing else.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::identity::{VmId, VolumeId};

/// What a caller asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Request {
    /// Make a volume.
    Create(Create),
    /// Attach it, as data.
    Attach(Attach),
    /// Attach it as a VM's root disk.
    AttachRoot(Attach),
    /// Detach it.
    Detach(Detach),
    /// Detach it and delete it for good.
    Delete(Detach),
    /// Bring a volume back from the VM of a test.
    Cleanup(CleanUp),
    /// On record only: it can never be carried out.
    Unusable(Unusable),
}

/// A volume to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Create {
    /// What people are to call it. CloudStack's name has the id of the job after it, so that it can be found again.
    pub name: Name,
    /// How large.
    pub size: Size,
    /// On which storage.
    pub disk_offering: ResourceId,
    /// Where.
    pub zone: ResourceId,
}

/// A volume to attach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Which.
    pub volume: VolumeId,
    /// To what.
    pub to: Place,
}

/// A volume to detach or delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detach {
    /// Which.
    pub volume: VolumeId,
    /// Where the caller believes it to be; `None`: where it is on record here.
    pub from: Option<Place>,
    /// Also while NBD clients are connected, or may be.
    pub force: bool,
    /// How long connected clients are waited for, in seconds.
    #[serde(default)]
    pub client_wait_seconds: u32,
}

/// A test to clean up after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanUp {
    /// Which volume.
    pub volume: VolumeId,
    /// The VM that has it.
    pub test_vm: VmId,
    /// Delete that VM afterwards.
    pub delete_vm: bool,
    /// Cut its power instead of asking it to stop.
    pub force: bool,
    /// To which VM the volume comes back; only this host can have it.
    #[serde(default)]
    pub back_to: Place,
}

/// What somebody has asked for that no operation can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unusable {
    /// What it was to be.
    pub kind: Kind,
    /// The volume, if it names one.
    pub volume: Option<VolumeId>,
    /// What is wrong with it.
    pub why: String,
}

/// Where a volume is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// This host, whatever its VM is called.
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

    /// The name in the API and the store.
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

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// How long one may take if its caller does not say, in seconds.
    pub const fn usual_limit(self) -> u32 {
        match self {
            // A VM has to stop first.
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
    /// Its kind.
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

    /// The volume that it names.
    pub const fn volume(&self) -> Option<VolumeId> {
        match self {
            Self::Create(_) => None,
            Self::Attach(attach) | Self::AttachRoot(attach) => Some(attach.volume),
            Self::Detach(detach) | Self::Delete(detach) => Some(detach.volume),
            Self::Cleanup(cleanup) => Some(cleanup.volume),
            Self::Unusable(unusable) => unusable.volume,
        }
    }

    /// The VM that it names. This host's own is `None`.
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

    /// How long NBD clients that are connected are waited for, in seconds.
    pub const fn client_wait_seconds(&self) -> u32 {
        match self {
            Self::Detach(detach) | Self::Delete(detach) => detach.client_wait_seconds,
            _ => 0,
        }
    }

    /// The same with this host's own VM called [`Place::Here`]: one wish has one form.
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

/// A value that no request can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// Of a name.
    #[error("a volume's name takes 1 to {MOST_OF_A_NAME} characters, none of them a control character; this one {0}")]
    Name(&'static str),
    /// Of a size.
    #[error("a volume's size takes from 1 to {most} bytes, not {0}", most = i64::MAX)]
    Size(u64),
    /// Of the id of an offering or a zone.
    #[error("{what:?} is no id of CloudStack's: it takes 1 to 64 letters, digits and hyphens")]
    Resource {
        /// The text.
        what: String,
    },
    /// Of a caller's own name for an operation.
    #[error("an idempotency key takes 1 to 255 visible ASCII characters")]
    Key,
}

/// CloudStack takes 255 characters, and a hyphen and the id of a job follow.
const MOST_OF_A_NAME: usize = 200;

/// The name of a volume to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// The id of an offering or a zone. Mostly a UUID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ResourceId(String);

/// A caller's own name for an operation.
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
            /// As text.
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

/// How large a volume is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Size(u64);

impl Size {
    /// As it was asked for.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// As CloudStack makes it: whole GiB, and never less than was asked for.
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
