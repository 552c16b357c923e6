//! Describes the request for an operation in the OpenAPI document: one shape for each type, with exactly the fields
//! that the type takes.

use utoipa::openapi::schema::{AdditionalProperties, OneOfBuilder, SchemaType};
use utoipa::openapi::{KnownFormat, ObjectBuilder, RefOr, Schema, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};

use super::names::uuid_pattern;
use super::operation::{Field, NewOperation};
use crate::operation::Kind;

/// The longest time limit of an operation that a request may have, in seconds.
pub(crate) const MOST_SECONDS: u32 = 86_400;

impl PartialSchema for NewOperation {
    fn schema() -> RefOr<Schema> {
        let each = Kind::ALL.into_iter().fold(OneOfBuilder::new(), |each, kind| each.item(of(kind)));
        let description = "An operation to begin. `vm_id` is the VM that the volume is attached to or detached from, by \
            default this host's own; of a cleanup it is the VM of the test.";
        RefOr::T(Schema::OneOf(each.description(Some(description)).build()))
    }
}

impl ToSchema for NewOperation {}

fn of(kind: Kind) -> RefOr<Schema> {
    let name = ObjectBuilder::new().schema_type(SchemaType::new(Type::String)).enum_values(Some([kind.as_str()]));
    let mut object = ObjectBuilder::new().title(Some(kind.as_str())).property("type", name).required("type");
    for field in Field::ALL {
        let Some(is_needed) = field.is_needed(kind) else { continue };
        object = object.property(field.name(), property(field, is_needed));
        if is_needed {
            object = object.required(field.name());
        }
    }
    let object = object.additional_properties(Some(AdditionalProperties::FreeForm(false)));
    RefOr::T(Schema::Object(object.build()))
}

/// `null` means the same as an absent field.
fn property(field: Field, is_needed: bool) -> ObjectBuilder {
    let one = |of| {
        let types = if is_needed { SchemaType::new(of) } else { SchemaType::from_iter([of, Type::Null]) };
        ObjectBuilder::new().schema_type(types)
    };
    let whole_from = |least: i64, most: i64| {
        let format = Some(SchemaFormat::KnownFormat(KnownFormat::Int64));
        one(Type::Integer).format(format).minimum(Some(least)).maximum(Some(most))
    };
    let whole = |most| whole_from(1, most);
    let text = |description| one(Type::String).description(Some(description));
    match field {
        Field::VolumeId => text("The CloudStack volume's UUID.").pattern(Some(uuid_pattern())),
        Field::VmId => text("The VM's UUID.").pattern(Some(uuid_pattern())),
        Field::Name => text("What people are to call the volume.")
            .min_length(Some(1))
            .max_length(Some(200))
            .pattern(Some(r"^[^\x00-\x1f\x7f-\x9f]*[^\x00-\x20\x7f-\xa0\s][^\x00-\x1f\x7f-\x9f]*$")),
        Field::SizeBytes => {
            whole(i64::MAX).description(Some("How large; CloudStack makes whole GiB, never less than this."))
        }
        Field::DiskOfferingId => text("CloudStack's disk offering.").pattern(Some("^[0-9A-Za-z-]{1,64}$")),
        Field::ZoneId => text("CloudStack's zone.").pattern(Some("^[0-9A-Za-z-]{1,64}$")),
        Field::Force => one(Type::Boolean)
            .description(Some("Also while NBD clients are connected; of a cleanup: cut the VM's power.")),
        Field::DeleteVm => one(Type::Boolean).description(Some("Delete the VM of the test afterwards.")),
        Field::ClientWaitSeconds => whole_from(0, MOST_SECONDS.into()).description(Some(
            "How long connected NBD clients are waited for before it fails. They are served meanwhile. By default 0.",
        )),
        Field::DeadlineSeconds => whole(MOST_SECONDS.into())
            .description(Some("How long it may take; then it ends with the truth. By default 300, of a cleanup 900.")),
    }
}
