//! What holds of the pure part, whatever is on record and whatever is known.

use jiff::SignedDuration;
use proptest::prelude::*;

use super::super::facts::{Act, Call, Facts, HereAct, Look, Next, Seen};
use super::super::next::next;
use super::world::{here, own, refusal, test_vm, volume};
use super::{attach, cleanup, create, delete, detach, id};
use crate::clock::Steady;
use crate::cloud::{CallError, CloudVm, CloudVolume, JobStatus, RefusalKind, Sent, VmState, VolumeKind, VolumeState};
use crate::identity::{JobId, VmId};
use crate::operation::{Attach, Ending, Fault, Operation, OperationState, Place, Progress, Request, Step};
use crate::reason::Code;
use crate::volume::{IntentOrigin, State};

const NOW: i64 = 1_000_000_000;

fn job(n: u128) -> JobId {
    JobId::from(uuid::Uuid::from_u128(n))
}

fn at(seconds: i64) -> Steady {
    Steady::from_micros(NOW).after(SignedDuration::from_secs(seconds))
}

fn some_vm() -> impl Strategy<Value = VmId> {
    prop_oneof![Just(own()), Just(test_vm()), Just(id(0xc))]
}

fn request() -> impl Strategy<Value = Request> {
    let elsewhere = Attach { volume: id(1), to: Place::Vm(test_vm()) };
    let all = [
        create(),
        attach(id(1)),
        Request::Attach(elsewhere.clone()),
        Request::AttachRoot(elsewhere),
        detach(id(1)),
        delete(id(1)),
        cleanup(id(1), true),
    ];
    proptest::sample::select(all.to_vec())
}

fn step() -> impl Strategy<Value = Step> {
    let job = job(1);
    proptest::sample::select(vec![
        Step::Accepted,
        Step::Create { job, earlier: Vec::new() },
        Step::DeleteOrphan,
        Step::StopVm { job },
        Step::Seal,
        Step::Detach { job },
        Step::Release,
        Step::Intend,
        Step::Attach { job },
        Step::Delete,
        Step::DestroyVm { job },
        Step::Unseal,
        Step::Withdraw,
    ])
}

fn why() -> CallError {
    CallError::Unreachable { sent: Sent::Unclear, why: "cut".to_owned() }
}

fn seen<T: Clone + std::fmt::Debug + 'static>(answer: impl Strategy<Value = T> + 'static) -> BoxedStrategy<Seen<T>> {
    prop_oneof![
        1 => Just(Seen::NotAsked),
        4 => (-8..=0_i64, answer).prop_map(|(age, answer)| Seen::At(at(age), answer)),
        1 => (-2..3_i64).prop_map(|again| Seen::Failed { why: why(), again: at(again) }),
    ]
    .boxed()
}

fn cloud_volume() -> impl Strategy<Value = Option<CloudVolume>> {
    let state = proptest::sample::select(vec![
        VolumeState::Ready,
        VolumeState::Ready,
        VolumeState::Attaching,
        VolumeState::Migrating,
        VolumeState::Destroy,
    ]);
    let kind = prop_oneof![3 => Just(VolumeKind::Data), 1 => Just(VolumeKind::Root)];
    let some = (proptest::option::of(some_vm()), state, kind, any::<bool>());
    let some = some.prop_map(|(vm, state, kind, protected)| CloudVolume {
        state,
        kind,
        delete_protection: protected,
        ..volume(1, vm)
    });
    proptest::option::weighted(0.8, some)
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        Just(Call::Unknown),
        Just(Call::NotMade),
        (-2..3_i64).prop_map(|again| Call::NotTaken { why: why(), again: at(again) }),
        Just(Call::UnderWay),
        proptest::option::of(1..3_u128).prop_map(|n| Call::Taken { job: n.map(job), volume: None }),
        Just(Call::Refused(refusal(RefusalKind::Conflict, "no"))),
        (-2..3_i64).prop_map(|again| Call::Unclear { why: why(), again: at(again) }),
    ]
}

fn status() -> impl Strategy<Value = Option<JobStatus>> {
    proptest::sample::select(vec![
        None,
        Some(JobStatus::Running),
        Some(JobStatus::Succeeded { volume: None }),
        Some(JobStatus::Failed(refusal(RefusalKind::Other, "no"))),
        Some(JobStatus::Cancelled),
    ])
}

prop_compose! {
    fn facts()(
        known in any::<bool>(), called_off in any::<bool>(), waits in any::<bool>(),
        volume in seen(cloud_volume()), job_is in seen(status()), call in call(), polls in 0..12_u32,
        vm in seen(proptest::option::of(proptest::sample::select(vec![VmState::Running, VmState::Stopped, VmState::Stopping]))),
        done in proptest::option::of(any::<bool>()), again in proptest::option::of(-2..3_i64),
        wanted in proptest::option::of((proptest::sample::select(State::ALL.to_vec()), any::<bool>())),
        refused in proptest::option::of(-30..0_i64), placeholder in proptest::option::of(some_vm()), call_at in -10..=0_i64,
    ) -> Facts {
        let own_vm = if known { Ok(own()) } else { Err("nobody knows".to_owned()) };
        let vm = match vm {
            Seen::At(at, state) => {
                Seen::At(at, state.map(|state| CloudVm { id: test_vm(), name: "t".to_owned(), state, macs: Vec::new() }))
            }
            Seen::NotAsked => Seen::NotAsked,
            Seen::Failed { why, again } => Seen::Failed { why, again },
        };
        let fault = Fault::new(Code::VolumeBusy, "why");
        Facts {
            now: at(0), own_vm, waits_for: waits.then(|| id(7)), called_off, new_job: job(99), volume,
            named: Seen::NotAsked, vm, job: job_is, polls, call, call_at: at(call_at),
            done: done.map(|done| if done { Ok(()) } else { Err(fault) }), again: again.map(at),
            here: wanted.map(|(state, ours)| {
                let origin = if ours { IntentOrigin::Operation(id(5)) } else { IntentOrigin::Announced };
                here(state, origin, id(1))
            }),
            refused_since: refused.map(at), placeholder,
        }
    }
}

prop_compose! {
    fn operation()(
        request in request(), step in step(), given_up in any::<bool>(), vm in proptest::option::of(some_vm()),
        adopted in any::<bool>(), late in any::<bool>(), ended in any::<bool>(), unsettled in any::<bool>(),
    ) -> Operation {
        let fault = Fault::new(Code::TimeIsUp, "why");
        let given_up = given_up.then(|| Ending::Failed(fault.clone()));
        let state = if ended { OperationState::Failed } else { OperationState::Executing };
        Operation {
            id: id(5), number: 1, volume: Some(id(1)), vm: None, request, written: None, key: None, uid: None, state,
            progress: Progress { step, job_given: None, given_up, adopted, vm, flush: None, device_path: None, unsettled: ended && unsettled },
            fault: ended.then_some(fault), response: None, limit_seconds: 60, deadline: at(if late { -1 } else { 1000 }),
            created_at: jiff::Timestamp::UNIX_EPOCH, updated_at: jiff::Timestamp::UNIX_EPOCH, completed_at: None,
        }
    }
}

/// What CloudStack has shown of the volume not long ago.
fn shown(facts: &Facts) -> Option<&CloudVolume> {
    match &facts.volume {
        Seen::At(at, volume) if facts.now.since(*at) <= SignedDuration::from_secs(5) => volume.as_ref(),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_known_nothing_is_done_that_the_guards_forbid(operation in operation(), facts in facts()) {
        let followed = next(&operation, &facts);
        let progress = &operation.progress;
        let recorded = progress.step.job();
        match &followed {
            // A step is on record, with its job, before it is taken.
            Next::Act(Act::Create { job, .. } | Act::Attach { job, .. } | Act::Detach { job, .. }
                | Act::StopVm { job, .. } | Act::DestroyVm { job, .. }) => {
                prop_assert_eq!(Some(*job), recorded);
                prop_assert!(progress.given_up.is_none() && !operation.state.is_ended(), "given up: {:?}", followed);
                prop_assert!(facts.now < operation.deadline, "late: {:?}", followed);
            }
            // No loop without a pause.
            Next::Wait(Some(until)) => prop_assert!(*until > facts.now, "{:?}", followed),
            Next::Record(now, _) => prop_assert!(*now.as_ref() != operation.progress, "the same again: {:?}", followed),
            Next::Intend(_, now) => prop_assert!(now.step.job().is_some() && progress.step == Step::Accepted),
            // By the id that the server has given to it, which is on record before.
            Next::Look(Look::Job(job)) => {
                prop_assert_eq!(Some(*job), progress.job());
                let other = matches!(facts.call, Call::Taken { job: Some(given), .. } if given != *job);
                prop_assert!(!other, "{:?}", facts.call);
            }
            _ => {}
        }
        match &followed {
            Next::Act(Act::Delete(_)) => {
                let volume = shown(&facts);
                prop_assert!(volume.is_some_and(|volume| volume.vm.is_none()), "{:?}", volume);
                let own = progress.step == Step::DeleteOrphan;
                prop_assert!(own || volume.is_some_and(|it| it.kind == VolumeKind::Data && !it.delete_protection));
            }
            Next::Act(Act::StopVm { vm, .. } | Act::DestroyVm { vm, .. }) => {
                prop_assert_eq!(*vm, test_vm());
                prop_assert!(facts.own_vm.is_ok(), "it could be this host");
            }
            Next::Act(Act::Attach { vm, .. }) => {
                // What comes here is wanted here, on record, before it can come.
                prop_assert!(*vm != own() || operation.request.vm() == Some(own()) || facts.here.is_some());
                let there = operation.request.vm().unwrap_or_else(own);
                prop_assert!(*vm == there || matches!(operation.request, Request::Cleanup(_)) && *vm == own()
                    || progress.vm == Some(*vm), "{:?}", vm);
            }
            Next::Here(HereAct::Withdraw(_)) => {
                prop_assert_eq!(facts.here.as_ref().map(|here| here.origin), Some(IntentOrigin::Operation(id(5))));
            }
            _ => {}
        }
        if facts.call == Call::UnderWay && progress.step.job().is_some() {
            prop_assert!(!matches!(followed, Next::Act(_)), "one call at a time");
        }
        if operation.state.is_ended() {
            prop_assert!(!matches!(followed, Next::End(_)), "it ends once");
        }
    }
}
