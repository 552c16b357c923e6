//! Converts the body of a request for an operation to the request, or to the field that is wrong; and back.

use std::str::FromStr;

use super::operation::{Field, NewOperation};
use super::operation_schema::MOST_SECONDS;
use crate::identity::VmId;
use crate::operation::{Attach, CleanUp, Create, Detach, Kind, Place, Request, Size};

/// A field with a value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {why}", name = .field.name())]
pub(crate) struct WrongField {
    /// The field.
    pub(crate) field: Field,
    /// Why the value is refused, and which values are accepted.
    pub(crate) why: String,
}

impl NewOperation {
    /// Returns the request, and its time limit.
    pub(crate) fn request(&self) -> Result<(Request, Option<u32>), WrongField> {
        self.check_fields()?;
        if self.deadline_seconds.is_some_and(|seconds| !(1..=MOST_SECONDS).contains(&seconds)) {
            let why = format!("it takes from 1 to {MOST_SECONDS} seconds; leave it out for the usual time");
            return Err(WrongField { field: Field::DeadlineSeconds, why });
        }
        let request = match self.kind {
            Kind::Create => Request::Create(Create {
                name: read(Field::Name, self.name.as_deref())?,
                size: self.size()?,
                disk_offering: read(Field::DiskOfferingId, self.disk_offering_id.as_deref())?,
                zone: read(Field::ZoneId, self.zone_id.as_deref())?,
            }),
            Kind::Attach => Request::Attach(self.attach()?),
            Kind::AttachRoot => Request::AttachRoot(self.attach()?),
            Kind::Detach => Request::Detach(self.detach()?),
            Kind::Delete => Request::Delete(self.detach()?),
            Kind::Cleanup => Request::Cleanup(CleanUp {
                volume: read(Field::VolumeId, self.volume_id.as_deref())?,
                test_vm: read(Field::VmId, self.vm_id.as_deref())?,
                delete_vm: self.delete_vm.unwrap_or_default(),
                force: self.force.unwrap_or_default(),
                back_to: Place::Here,
            }),
        };
        Ok((request, self.deadline_seconds))
    }

    /// Checks that all fields are present that the type needs, and no field that would have no effect.
    fn check_fields(&self) -> Result<(), WrongField> {
        for field in Field::ALL {
            let why = match field.is_needed(self.kind) {
                None if self.says(field) => format!("type {} does not take it", self.kind),
                Some(true) if !self.says(field) => format!("it is missing, and type {} takes it", self.kind),
                _ => continue,
            };
            return Err(WrongField { field, why });
        }
        Ok(())
    }

    fn size(&self) -> Result<Size, WrongField> {
        let size = Size::try_from(self.size_bytes.unwrap_or_default());
        size.map_err(|error| WrongField { field: Field::SizeBytes, why: error.to_string() })
    }

    fn attach(&self) -> Result<Attach, WrongField> {
        let to = self.place()?.unwrap_or(Place::Here);
        Ok(Attach { volume: read(Field::VolumeId, self.volume_id.as_deref())?, to })
    }

    fn detach(&self) -> Result<Detach, WrongField> {
        let volume = read(Field::VolumeId, self.volume_id.as_deref())?;
        let client_wait_seconds = self.client_wait_seconds.unwrap_or_default();
        if client_wait_seconds > MOST_SECONDS {
            let why = format!("it takes at most {MOST_SECONDS} seconds");
            return Err(WrongField { field: Field::ClientWaitSeconds, why });
        }
        Ok(Detach { volume, from: self.place()?, force: self.force.unwrap_or_default(), client_wait_seconds })
    }

    fn place(&self) -> Result<Option<Place>, WrongField> {
        let Some(text) = self.vm_id.as_deref() else { return Ok(None) };
        let vm: VmId = read(Field::VmId, Some(text)).map_err(|WrongField { field, why }| WrongField {
            field,
            why: format!("{why}; leave it out for this host"),
        })?;
        Ok(Some(Place::Vm(vm)))
    }
}

fn read<T: FromStr<Err: std::fmt::Display>>(field: Field, text: Option<&str>) -> Result<T, WrongField> {
    let read = text.unwrap_or_default().parse::<T>();
    read.map_err(|error| WrongField { field, why: error.to_string() })
}

/// Returns the body with which a caller could repeat the request, without its time limit. `own` is this host's VM, if
/// it is known.
pub(crate) fn as_asked(request: &Request, own: Option<VmId>) -> NewOperation {
    let asked = NewOperation {
        volume_id: request.volume().map(|volume| volume.to_string()),
        vm_id: request.vm().map(|vm| vm.to_string()),
        ..NewOperation::of(request.kind())
    };
    let here = || own.map(|own| own.to_string());
    match request {
        Request::Create(create) => NewOperation {
            name: Some(create.name.to_string()),
            size_bytes: Some(create.size.bytes()),
            disk_offering_id: Some(create.disk_offering.to_string()),
            zone_id: Some(create.zone.to_string()),
            ..asked
        },
        Request::Attach(Attach { to: Place::Here, .. }) | Request::AttachRoot(Attach { to: Place::Here, .. }) => {
            NewOperation { vm_id: here(), ..asked }
        }
        Request::Attach(_) | Request::AttachRoot(_) | Request::Unusable(_) => asked,
        Request::Detach(detach) | Request::Delete(detach) => {
            let vm_id = if detach.from == Some(Place::Here) { here() } else { asked.vm_id };
            let client_wait_seconds = Some(detach.client_wait_seconds).filter(|seconds| *seconds > 0);
            NewOperation { vm_id, force: Some(detach.force), client_wait_seconds, ..asked }
        }
        Request::Cleanup(cleanup) => {
            NewOperation { delete_vm: Some(cleanup.delete_vm), force: Some(cleanup.force), ..asked }
        }
    }
}

/// Returns the first field in which two requests differ, and its value in each.
pub(crate) fn difference(have: &NewOperation, asked: &NewOperation) -> Option<(&'static str, String, String)> {
    if have.kind != asked.kind {
        return Some(("type", have.kind.to_string(), asked.kind.to_string()));
    }
    let (have, asked) = (have.fields(), asked.fields());
    let shown = |value: Option<&serde_json::Value>| match value {
        None => "nothing".to_owned(),
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    let fields = Field::ALL.into_iter().map(Field::name);
    fields
        .map(|name| (name, have.get(name), asked.get(name)))
        .find(|(_, have, asked)| have != asked)
        .map(|(name, have, asked)| (name, shown(have), shown(asked)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const VOLUME: &str = "b3bb9310-1b59-4f62-97e8-cefffdfe3804";

    fn asked(body: &Value) -> Result<(Request, Option<u32>), WrongField> {
        // The value as text.
        serde_json::from_str::<NewOperation>(&body.to_string()).unwrap().request()
    }

    #[test]
    fn each_field_that_is_wrong_is_named_with_what_it_takes() {
        let create = |field: &str, value: Value| {
            let mut body =
                json!({ "type": "create", "name": "n", "size_bytes": 1, "disk_offering_id": "d", "zone_id": "z" });
            body[field] = value;
            asked(&body)
        };
        assert!(create("name", json!("Größe 1")).is_ok(), "the control");
        for (field, value, says) in [
            ("name", json!("a\nb"), "control character"),
            ("name", json!(" "), "is empty"),
            ("name", Value::Null, "is missing"),
            ("size_bytes", json!(0), "from 1 to 9223372036854775807"),
            ("size_bytes", json!(1_u64 << 63), "not 9223372036854775808"),
            ("disk_offering_id", json!("a&command=x"), "letters, digits and hyphens"),
            ("zone_id", json!(""), "letters, digits and hyphens"),
            ("volume_id", json!(VOLUME), "type create does not take it"),
            ("force", json!(false), "type create does not take it"),
            ("deadline_seconds", json!(0), "from 1 to 86400"),
        ] {
            let wrong = create(field, value).unwrap_err();
            assert_eq!(wrong.field.name(), field, "{wrong}");
            assert!(wrong.to_string().contains(says), "{wrong}");
        }
        for (kind, field, value, says) in [
            ("attach", "volume_id", Value::Null, "is missing"),
            ("attach", "volume_id", json!("vol-1"), "is not a volume id"),
            ("attach", "vm_id", json!(""), "is not a VM id"),
            ("attach", "vm_id", json!("i-2-3-VM"), "leave it out for this host"),
            ("attach-root", "size_bytes", json!(1), "does not take it"),
            ("attach", "force", json!(true), "type attach does not take it"),
            ("detach", "delete_vm", json!(true), "does not take it"),
            ("cleanup", "vm_id", Value::Null, "is missing"),
            ("delete", "name", json!("n"), "does not take it"),
        ] {
            let mut body = json!({ "type": kind, "volume_id": VOLUME });
            body[field] = value;
            let wrong = asked(&body).unwrap_err();
            assert_eq!(wrong.field.name(), field, "{kind}: {wrong}");
            assert!(wrong.to_string().contains(says), "{kind}: {wrong}");
        }
    }

    #[test]
    fn without_a_vm_an_attach_is_to_this_host_and_a_detach_from_where_the_volume_is() {
        let volume = VOLUME.parse().unwrap();
        let (attach, limit) =
            asked(&json!({ "type": "attach", "volume_id": VOLUME, "deadline_seconds": 60.0 })).unwrap();
        assert_eq!((attach, limit), (Request::Attach(Attach { volume, to: Place::Here }), Some(60)));
        let (detach, _) = asked(&json!({ "type": "detach", "volume_id": VOLUME })).unwrap();
        assert_eq!(detach, Request::Detach(Detach { volume, from: None, force: false, client_wait_seconds: 0 }));
    }

    #[test]
    fn two_requests_are_told_apart_by_their_first_field_that_differs() {
        let of = |body: Value| serde_json::from_str::<NewOperation>(&body.to_string()).unwrap();
        let one = of(json!({ "type": "detach", "volume_id": VOLUME, "force": false }));
        assert_eq!(difference(&one, &one), None, "the control");
        let other = of(json!({ "type": "detach", "volume_id": VOLUME, "force": true, "vm_id": VOLUME }));
        assert_eq!(difference(&one, &other), Some(("vm_id", "nothing".to_owned(), VOLUME.to_owned())));
        let forced = of(json!({ "type": "detach", "volume_id": VOLUME, "force": true }));
        assert_eq!(difference(&one, &forced), Some(("force", "false".to_owned(), "true".to_owned())));
        let delete = of(json!({ "type": "delete", "volume_id": VOLUME, "force": false }));
        assert_eq!(difference(&one, &delete), Some(("type", "detach".to_owned(), "delete".to_owned())));
    }
}
