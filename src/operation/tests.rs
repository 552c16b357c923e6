//! What a request can hold, and what it reads like again.

use proptest::prelude::*;

use super::*;
use crate::reason::Code;

fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(n: u32) -> T {
    format!("{n:08x}-1b59-4f62-97e8-cefffdfe3804").parse().unwrap()
}

#[test]
fn a_size_is_rounded_up_to_whole_gib_and_none_that_is_no_size_is_taken() {
    let gib = |bytes: u64| Size::try_from(bytes).map(Size::gib);
    assert_eq!(gib(1), Ok(1));
    assert_eq!(gib(1 << 30), Ok(1));
    assert_eq!(gib((1 << 30) + 1), Ok(2));
    for bad in [0, i64::MAX.unsigned_abs() + 1, u64::MAX] {
        assert!(gib(bad).unwrap_err().to_string().contains(&bad.to_string()));
    }
}

#[test]
fn names_ids_and_keys_take_nothing_that_could_be_read_as_something_else() {
    for bad in ["", "  ", "a\nb", "a\u{0}", "a\u{7f}", &"x".repeat(201)] {
        assert!(bad.parse::<Name>().is_err(), "{bad:?}");
    }
    assert!("Größe 1, disk 2/3".parse::<Name>().is_ok(), "the control");
    for bad in ["", "a b", "a&b", "ü", &"x".repeat(65)] {
        assert!(bad.parse::<ResourceId>().is_err(), "{bad:?}");
    }
    for bad in ["", "a b", "a\n", &"x".repeat(256)] {
        assert!(bad.parse::<IdempotencyKey>().is_err(), "{bad:?}");
    }
}

#[test]
fn the_own_vm_by_its_id_and_this_host_are_one_wish() {
    let own: VmId = id(1);
    let attach = |to| Request::Attach(Attach { volume: id(2), to });
    assert_eq!(attach(Place::Vm(own)).seen_from(Some(own)), attach(Place::Here));
    assert_eq!(attach(Place::Vm(id(3))).seen_from(Some(own)), attach(Place::Vm(id(3))), "another");
    assert_eq!(attach(Place::Vm(own)).seen_from(None), attach(Place::Vm(own)), "not known");
}

fn request() -> impl Strategy<Value = Request> {
    let volume = any::<u32>().prop_map(id::<VolumeId>);
    let vm = any::<u32>().prop_map(id::<VmId>);
    let place = prop_oneof![Just(Place::Here), vm.clone().prop_map(Place::Vm)];
    let attach = (volume.clone(), place.clone()).prop_map(|(volume, to)| Attach { volume, to });
    let detach = (volume.clone(), proptest::option::of(place.clone()), any::<bool>(), any::<u32>());
    let detach = detach.prop_map(|(volume, from, force, client_wait_seconds)| Detach {
        volume,
        from,
        force,
        client_wait_seconds,
    });
    let create = ("[^\\pC]{1,30}x", 1..=i64::MAX.unsigned_abs()).prop_map(|(name, bytes)| {
        let (disk_offering, zone) = ("offering-1".parse().unwrap(), "zone-1".parse().unwrap());
        Request::Create(Create { name: name.parse().unwrap(), size: bytes.try_into().unwrap(), disk_offering, zone })
    });
    let unusable = (0..Kind::ALL.len(), proptest::option::of(volume.clone()), ".{0,20}");
    let cleanup = (volume, vm, any::<bool>(), any::<bool>(), place);
    prop_oneof![
        create,
        attach.clone().prop_map(Request::Attach),
        attach.prop_map(Request::AttachRoot),
        detach.clone().prop_map(Request::Detach),
        detach.prop_map(Request::Delete),
        cleanup.prop_map(|(volume, test_vm, delete_vm, force, back_to)| {
            Request::Cleanup(CleanUp { volume, test_vm, delete_vm, force, back_to })
        }),
        unusable.prop_map(|(kind, volume, why)| Request::Unusable(Unusable { kind: Kind::ALL[kind], volume, why })),
    ]
}

proptest! {
    #[test]
    fn a_request_reads_the_same_again_to_the_last_digit(request in request()) {
        let kept = serde_json::to_string(&request).unwrap();
        prop_assert_eq!(serde_json::from_str::<Request>(&kept).unwrap(), request);
    }

    #[test]
    fn a_size_is_never_rounded_down(bytes in 1..=i64::MAX.unsigned_abs()) {
        let gib = u128::from(Size::try_from(bytes).unwrap().gib());
        prop_assert!(gib << 30 >= u128::from(bytes) && (gib - 1) << 30 < u128::from(bytes));
    }
}

#[test]
fn a_progress_reads_the_same_again() {
    let job = JobId::from(uuid::Uuid::from_u128(7));
    let fault = Fault::new(Code::VolumeBusy, "why");
    for step in [Step::Accepted, Step::Create { job, earlier: vec![job] }, Step::Detach { job }, Step::Seal] {
        for given_up in [None, Some(Ending::Cancelled), Some(Ending::Failed(fault.clone()))] {
            let flush = Some(Flush::Failed("why".to_owned()));
            let progress = Progress {
                step: step.clone(),
                job_given: Some(job),
                given_up,
                adopted: true,
                vm: Some(id(3)),
                flush,
                device_path: Some("/l".to_owned()),
                unsettled: true,
            };
            let kept = serde_json::to_string(&progress).unwrap();
            assert_eq!(serde_json::from_str::<Progress>(&kept).unwrap(), progress);
        }
    }
}

use crate::identity::JobId;
