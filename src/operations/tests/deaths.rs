//! Killed before and after every effect, and with every answer cut off: the end is the same.

use std::time::Duration;

use tokio::time::timeout;

use super::world::Trouble;
use super::*;
use crate::cloud::VmState;
use crate::volume::State;

const VOLUME: u32 = 1;

/// What is asked for, in which world.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Story {
    Create,
    AttachHere,
    AttachThere,
    AttachRoot,
    DetachHere,
    DetachThere,
    DetachRefused,
    AttachRefused,
    Delete,
    Cleanup,
}

const STORIES: [Story; 10] = [
    Story::Create,
    Story::AttachHere,
    Story::AttachThere,
    Story::AttachRoot,
    Story::DetachHere,
    Story::DetachThere,
    Story::DetachRefused,
    Story::AttachRefused,
    Story::Delete,
    Story::Cleanup,
];

impl Story {
    fn begin(self) -> (Arc<World>, Request) {
        let world = World::new();
        let there = Attach { volume: id(VOLUME), to: Place::Vm(test_vm()) };
        let (vm, request) = match self {
            Self::Create => (None, create()),
            Self::AttachHere | Self::AttachRefused => (None, attach(id(VOLUME))),
            Self::AttachThere => (None, Request::Attach(there)),
            Self::AttachRoot => (None, Request::AttachRoot(there)),
            Self::DetachHere | Self::DetachRefused => (Some(own()), detach(id(VOLUME))),
            Self::DetachThere => {
                let from = Some(Place::Vm(test_vm()));
                (
                    Some(test_vm()),
                    Request::Detach(Detach { volume: id(VOLUME), from, force: false, client_wait_seconds: 0 }),
                )
            }
            Self::Delete => (Some(own()), delete(id(VOLUME))),
            Self::Cleanup => (Some(test_vm()), cleanup(id(VOLUME), true)),
        };
        if self != Self::Create {
            world.with(volume(VOLUME, vm));
        }
        if matches!(self, Self::DetachRefused | Self::AttachRefused) {
            world.trouble().jobs_fail = Some("no");
        }
        (world, request)
    }

    /// Cloud, records and this host agree, and it is what was asked for.
    fn check(self, world: &World, operation: &Operation, what: &str) {
        let state = world.state();
        let what = format!("{self:?}, {what}: {operation:#?}\n{:#?}\n{:#?}", state.log, state.points);
        let cloud = state.volumes.get(&id(VOLUME));
        let vm = cloud.and_then(|volume| volume.vm);
        let here = state.here.get(&id(VOLUME)).map(|here| here.state);
        let placed = state.placeholders.get(&id(VOLUME)).map(|placeholder| (placeholder.vm, placeholder.root));
        assert!(state.sealed.is_empty() && state.wrongs.is_empty(), "{:?} {what}", state.wrongs);
        let refused = matches!(self, Self::DetachRefused | Self::AttachRefused);
        assert_eq!(completed(operation), !refused, "{what}");
        match self {
            Self::Create => {
                let made = operation.volume.unwrap();
                assert_eq!(state.volumes.keys().collect::<Vec<_>>(), [&made], "no orphan: {what}");
                assert_eq!(state.volumes[&made].size_bytes, 4 << 30, "rounded up");
            }
            Self::AttachHere | Self::DetachRefused => {
                assert_eq!((vm, here, placed), (Some(own()), Some(State::Ready), None), "{what}");
            }
            Self::AttachThere | Self::AttachRoot => {
                let there = (test_vm(), self == Self::AttachRoot);
                assert_eq!((vm, here, placed), (Some(test_vm()), None, Some(there)), "{what}");
            }
            Self::DetachHere | Self::DetachThere | Self::AttachRefused => {
                assert_eq!((vm, here, placed), (None, None, None), "{what}");
            }
            Self::Delete => assert_eq!((cloud, here, placed), (None, None, None), "{what}"),
            Self::Cleanup => {
                assert_eq!((vm, here, placed), (Some(own()), Some(State::Ready), None), "{what}");
                assert!(!state.vms.contains_key(&test_vm()) && state.vms[&own()].state == VmState::Running, "{what}");
            }
        }
    }

    /// From the request to the end, whatever happens meanwhile. A caller whose answer was lost asks again.
    async fn play(self, trouble: Trouble) -> (Arc<World>, Vec<String>, usize) {
        let what = format!("{trouble:?}");
        let (world, request) = self.begin();
        {
            let mut now = world.trouble();
            *now = Trouble { jobs_fail: now.jobs_fail, ..trouble };
        }
        let mut operations = world.start();
        let followed = |operations: Operations| {
            let request = request.clone();
            async move {
                let key = Some("once".parse().unwrap());
                let submitted = operations.submit(Submission { key, ..submission(request) }).await.unwrap();
                let operation = operations.ended(submitted.operation.id).await.unwrap();
                // What is still to come after the answer comes.
                while operations.registry().entry(operation.id).is_some() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                operation
            }
        };
        let mut deaths = 0;
        let operation = loop {
            let ended = timeout(Duration::from_secs(1000), async {
                tokio::select! {
                    biased;
                    () = world.died.notified() => None,
                    operation = followed(operations.clone()) => Some(operation),
                }
            });
            let ended = ended.await;
            let ended = ended.unwrap_or_else(|_| panic!("{self:?}, {what}: no end: {:#?}", world.state().points));
            if let Some(operation) = ended {
                break operation;
            }
            operations.stop();
            deaths += 1;
            world.trouble().die_at = None;
            operations = world.start();
        };
        self.check(&world, &operation, &what);
        // Asked for once more, it is the same answer.
        let again = followed(operations.clone()).await;
        assert_eq!((again.id, again.state), (operation.id, operation.state));
        operations.stop();
        let points = world.state().points.clone();
        (world, points, deaths)
    }
}

#[tokio::test(start_paused = true)]
async fn killed_before_and_after_every_effect_each_operation_ends_with_the_truth() {
    let mut all = 0;
    for story in STORIES {
        let (_, points, _) = story.play(Trouble::default()).await;
        assert!(points.len() >= 8, "{points:?}");
        for point in 0..points.len() {
            let (_, _, deaths) = story.play(Trouble { die_at: Some(point), ..Trouble::default() }).await;
            assert_eq!(deaths, 1, "{story:?} does not pass point {point}");
            all += 1;
        }
    }
    assert!(all > 200, "{all}");
}

#[tokio::test(start_paused = true)]
async fn with_any_answer_of_the_cloud_cut_off_each_operation_ends_with_the_truth() {
    for story in STORIES {
        let (_, points, _) = story.play(Trouble::default()).await;
        let calls = points.iter().filter(|point| point.starts_with("before:cloud.")).count();
        for call in 0..calls {
            for carried_out in [false, true] {
                story.play(Trouble { cut_at: Some((call, carried_out)), ..Trouble::default() }).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_undisturbed_makes_no_needless_call() {
    let mut log = Vec::new();
    for story in STORIES {
        let (world, ..) = story.play(Trouble::default()).await;
        log.push(world.state().log.clone().join("; "));
    }
    let (v, vm) = (id::<VolumeId>(VOLUME), test_vm());
    let expected = [
        "create 4".to_owned(),
        format!("attach {v} {} None", own()),
        format!("attach {v} {vm} None"),
        format!("attach {v} {vm} Some(0)"),
        format!("detach {v}"),
        format!("detach {v}"),
        format!("detach {v}"),
        format!("attach {v} {} None", own()),
        format!("detach {v}; delete {v}"),
        format!("stop {vm} true; detach {v}; attach {v} {} None; destroy {vm}", own()),
    ];
    assert_eq!(log, expected);
}
