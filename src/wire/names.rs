//! How types of other modules are written in JSON, and how the OpenAPI document describes them.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::openapi::schema::SchemaType;
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::identity::{OperationId, Serial, VmId, VolumeId};
use crate::operation::{Kind, OperationState};
use crate::reason::{Code, SaidAt, StoryStep};
use crate::volume::State;

fn text(description: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(SchemaType::new(Type::String)).description(Some(description))
}

fn pattern(description: &str, pattern: &str, format: Option<SchemaFormat>, example: &str) -> RefOr<Schema> {
    let schema = text(description).pattern(Some(pattern)).format(format).examples([example]);
    RefOr::T(Schema::Object(schema.build()))
}

/// A UUID as attachd takes it: with hyphens.
pub(super) fn uuid_pattern() -> String {
    let digits = |count| format!("[0-9a-fA-F]{{{count}}}");
    format!("^{}-{2}-{2}-{2}-{}$", digits(8), digits(12), digits(4))
}

fn uuid(description: &str) -> RefOr<Schema> {
    let format = Some(SchemaFormat::Custom("uuid".to_owned()));
    pattern(description, &uuid_pattern(), format, "b3bb9310-1b59-4f62-97e8-cefffdfe3804")
}

impl PartialSchema for VolumeId {
    fn schema() -> RefOr<Schema> {
        uuid("A CloudStack volume's UUID, with hyphens.")
    }
}

impl PartialSchema for OperationId {
    fn schema() -> RefOr<Schema> {
        uuid("An operation's UUID, with hyphens.")
    }
}

impl PartialSchema for VmId {
    fn schema() -> RefOr<Schema> {
        uuid("The UUID of a VM of CloudStack's, with hyphens.")
    }
}

impl PartialSchema for Serial {
    fn schema() -> RefOr<Schema> {
        let description = "What the volume's disk shows: the UUID without hyphens, its first 20 characters.";
        pattern(description, "^[0-9a-f]{20}$", None, "b3bb93101b594f6297e8")
    }
}

impl PartialSchema for State {
    fn schema() -> RefOr<Schema> {
        let names = Self::ALL.map(Self::as_str);
        RefOr::T(Schema::Object(text("Where a volume stands.").enum_values(Some(names)).build()))
    }
}

impl PartialSchema for Kind {
    fn schema() -> RefOr<Schema> {
        let names = Self::ALL.map(Self::as_str);
        RefOr::T(Schema::Object(text("What an operation does.").enum_values(Some(names)).build()))
    }
}

impl PartialSchema for OperationState {
    fn schema() -> RefOr<Schema> {
        let names = Self::ALL.map(Self::as_str);
        RefOr::T(Schema::Object(text("How far an operation is.").enum_values(Some(names)).build()))
    }
}

impl PartialSchema for StoryStep {
    fn schema() -> RefOr<Schema> {
        let names = Self::ALL.iter().map(|step| step.name());
        let description = "What happened; `journalctl -x` explains each.";
        RefOr::T(Schema::Object(text(description).enum_values(Some(names)).build()))
    }
}

/// Declares the set of codes that one kind of answer can have.
macro_rules! codes {
    ($($kind:ident $is_said:expr, $description:literal;)+) => {
        $(
            pub(crate) struct $kind;

            impl PartialSchema for $kind {
                fn schema() -> RefOr<Schema> {
                    let said: Vec<Code> = Code::ALL.iter().copied().filter($is_said).collect();
                    let lines = said.iter().map(|code| format!("* `{code}`: {}", code.meaning()));
                    let description = format!("{}\n\n{}", $description, lines.collect::<Vec<_>>().join("\n"));
                    let names = said.iter().map(|code| code.name());
                    RefOr::T(Schema::Object(text(&description).enum_values(Some(names)).build()))
                }
            }

            impl ToSchema for $kind {}
        )+
    };
}

codes! {
    ReasonCode |code| code.is_of_volumes(), "Why a volume is not served.";
    ProblemCode |code| code.is_of_health(), "What needs a look.";
    RemarkCode |code| code.is_said(SaidAt::Remark), "What is worth knowing.";
    FaultCode |code| code.is_said(SaidAt::Operation), "Why an operation failed.";
    ErrorCode |code| code.status().is_some(), "Why a request was refused.";
}

impl ToSchema for StoryStep {}

impl ToSchema for VolumeId {}

impl ToSchema for OperationId {}

impl ToSchema for VmId {}

impl ToSchema for Kind {}

impl ToSchema for OperationState {}

impl ToSchema for Serial {}

impl ToSchema for State {}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for State {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::from_name(&name).ok_or_else(|| D::Error::custom(format!("there is no state {name:?}")))
    }
}
