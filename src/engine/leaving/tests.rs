use super::*;
use proptest::prelude::*;

fn volume() -> VolumeId {
    VolumeId::MIN
}

fn operation(n: u8) -> OperationId {
    format!("{n:08x}-0000-4000-8000-000000000000").parse().unwrap()
}

fn connected() -> Clients {
    Clients::Connected(Holders { clients: vec!["127.0.0.1:1".into()], exact: true })
}

fn unknown() -> Clients {
    Clients::Unknown { why: "silent".into(), candidates: Vec::new() }
}

/// What is running outside.
#[derive(Debug, Clone, PartialEq, Eq)]
enum UnderWay {
    /// The question was asked after this number of revocations. Later clients are not in the answer.
    Asked {
        epoch: u32,
        client: bool,
    },
    Writes(Write),
    Unclaims,
}

/// A volume, its export, its clients, and all callers.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own; together they are no state machine")]
struct Scene {
    leaving: Leaving,
    under_way: Option<UnderWay>,
    /// The recorded seal.
    sealed: Option<By>,
    rows: bool,
    served: bool,
    /// The number of revocations.
    epoch: u32,
    /// Whether a client is connected.
    client: bool,
    /// The call that waits for an answer.
    waits: Option<Call>,
    /// Whether the last answer was unknown and the caller insists.
    on_a_guess: bool,
    forgotten: bool,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Call(Call),
    /// The running work ends, with success or without.
    End(bool),
    ClientComes,
    ClientGoes,
    Look,
    /// The export is made, if nothing prevents it.
    Serve,
    /// The daemon dies. `true`: what it was just writing is durable.
    Restart(bool),
}

impl Scene {
    fn new() -> Self {
        Self {
            leaving: Leaving::No,
            under_way: None,
            sealed: None,
            rows: true,
            served: true,
            epoch: 0,
            client: false,
            waits: None,
            on_a_guess: false,
            forgotten: false,
        }
    }

    fn step(&mut self, step: Step, stuck: bool) {
        match step {
            Step::Call(call) => {
                if let Ok((leaving, act)) = called(volume(), &self.leaving, call) {
                    assert_eq!(self.under_way, None, "one step at a time");
                    assert_eq!(self.waits.replace(call), None, "whoever waits is answered");
                    self.follow(Next { leaving, act, answer: None }, stuck);
                }
            }
            Step::End(well) => self.end(well, stuck),
            Step::ClientComes => self.client |= self.served,
            Step::ClientGoes => self.client = false,
            Step::Look => self.happens(Outcome::Look, stuck),
            Step::Serve => self.served |= self.rows && !self.leaving.is_closed(),
            Step::Restart(durable) => {
                if let Some(UnderWay::Writes(write)) = self.under_way.take()
                    && durable
                {
                    self.write(&write);
                }
                self.waits = None;
                self.forgotten = !self.rows;
                self.leaving = remembered(self.sealed);
            }
        }
        self.check();
    }

    fn end(&mut self, well: bool, stuck: bool) {
        let outcome = match self.under_way.take() {
            None => return,
            Some(UnderWay::Asked { epoch, client }) => {
                let clients = match (well, client) {
                    (false, _) => unknown(),
                    (true, true) => connected(),
                    (true, false) => Clients::None,
                };
                self.on_a_guess = !well;
                Outcome::Clients { clients, current: !self.served && self.epoch == epoch }
            }
            Some(UnderWay::Writes(_)) if !well => Outcome::Failed(Rejection::Leaving(volume())),
            Some(UnderWay::Writes(write)) => {
                self.write(&write);
                Outcome::Written
            }
            Some(UnderWay::Unclaims) => Outcome::Unclaimed,
        };
        self.happens(outcome, stuck);
    }

    fn happens(&mut self, outcome: Outcome, stuck: bool) {
        let leaving = std::mem::take(&mut self.leaving);
        self.follow(next(volume(), leaving, outcome), stuck);
    }

    fn follow(&mut self, mut next: Next, stuck: bool) {
        if self.served && next.closes() {
            if stuck {
                next = next.stuck(volume());
            } else {
                self.served = false;
                self.epoch += 1;
            }
        }
        self.leaving = next.leaving;
        let begun = match next.act {
            Act::Ask => Some(UnderWay::Asked { epoch: self.epoch, client: self.client }),
            Act::Write(write) => Some(UnderWay::Writes(write)),
            Act::Unclaim => Some(UnderWay::Unclaims),
            Act::Forget => {
                self.forgotten = true;
                None
            }
            Act::Rest | Act::TellSealed | Act::TellLingering(_) | Act::LookLater | Act::GiveBack => None,
        };
        if let Some(begun) = begun {
            assert_eq!(self.under_way.replace(begun), None, "one step at a time");
        }
        if let Some(answer) = next.answer
            && let Some(call) = self.waits.take()
        {
            self.answered(call, answer.is_ok());
        }
    }

    /// Checks that an answer's promise holds.
    fn answered(&self, call: Call, done: bool) {
        if !done {
            return;
        }
        match call {
            Call::Seal { by: by @ By::Operation(_), force } => {
                assert_eq!((self.sealed, self.served), (Some(by), false), "sealed, and not on record");
                assert!(force || !self.client, "a disk in use would be given to the cloud");
            }
            Call::Unseal(_) => assert_eq!(self.sealed, None),
            Call::Seal { by: By::Withdrawal, .. } | Call::Release { .. } => {
                assert!(!self.rows || self.sealed == Some(By::Withdrawal), "withdrawn, and not on record");
                assert!(!self.served, "withdrawn, and served");
            }
        }
    }

    fn write(&mut self, write: &Write) {
        let asked = self.waits;
        let before = self.sealed;
        match write {
            Write::Seal(operation) => self.sealed = Some(By::Operation(*operation)),
            Write::Unseal(_) => self.sealed = None,
            Write::Lingers(_) => self.sealed = Some(By::Withdrawal),
            Write::Rows => {
                // Invariant 16.
                assert!(!self.served, "it is still served");
                assert!(!self.client || self.on_a_guess, "it goes from under a client");
                self.rows = false;
                self.sealed = None;
            }
        }
        if let Some(By::Operation(operation)) = before {
            let theirs = match asked {
                Some(Call::Unseal(by) | Call::Release { operation: by, .. }) => by == operation,
                Some(Call::Seal { .. }) | None => false,
            };
            assert!(theirs, "only the operation that has sealed it ends that: {asked:?}");
        }
    }

    fn check(&self) {
        if matches!(self.sealed, Some(By::Operation(_))) {
            assert!(!self.served, "sealed on record, and served");
        }
        if self.sealed.is_some() {
            assert!(self.leaving.is_closed() || matches!(self.under_way, Some(UnderWay::Writes(Write::Unseal(_)))));
        }
        let rests = matches!(
            self.leaving,
            Leaving::No | Leaving::Sealed(_, Seal::Kept) | Leaving::Lingering { asking: false, .. }
        ) || self.forgotten;
        assert_eq!(rests, self.under_way.is_none(), "it waits for what never comes, or does not wait");
        assert!(self.waits.is_none() || !rests, "nobody answers who asked");
        assert!(self.rows || matches!(self.leaving, Leaving::Gone { .. }) || self.forgotten, "its rows are gone");
    }
}

fn call() -> impl Strategy<Value = Call> {
    let operation = (0..2_u8).prop_map(operation);
    (operation, any::<bool>(), 0..4_u8).prop_map(|(operation, force, kind)| match kind {
        0 => Call::Seal { by: By::Withdrawal, force },
        1 => Call::Seal { by: By::Operation(operation), force },
        2 => Call::Unseal(operation),
        _ => Call::Release { operation, force },
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => call().prop_map(Step::Call),
        8 => prop::bool::weighted(0.8).prop_map(Step::End),
        3 => Just(Step::ClientComes),
        1 => Just(Step::ClientGoes),
        1 => Just(Step::Look),
        2 => Just(Step::Serve),
        1 => any::<bool>().prop_map(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Invariant 16, for any history: no volume is withdrawn while a client is connected. A volume whose seal is
    /// recorded is not served, and only its operation ends the seal, also after restarts. Every caller is answered.
    #[test]
    fn in_any_history_a_seal_holds_and_no_volume_goes_while_a_client_is_connected(
        steps in proptest::collection::vec((step(), prop::bool::weighted(0.1)), 0..60),
    ) {
        let mut scene = Scene::new();
        for (step, stuck) in steps {
            if scene.forgotten {
                break;
            }
            scene.step(step, stuck);
        }
    }

    /// From any state: when the parts work and the clients have gone, it comes to rest.
    #[test]
    fn it_comes_to_rest(steps in proptest::collection::vec(step(), 0..30)) {
        let mut scene = Scene::new();
        for step in steps {
            if !scene.forgotten {
                scene.step(step, false);
            }
        }
        scene.client = false;
        for _ in 0..8 {
            scene.step(Step::End(true), false);
            scene.step(Step::Look, false);
        }
        prop_assert!(scene.under_way.is_none() && scene.waits.is_none(), "{scene:?}");
        prop_assert!(!matches!(scene.leaving, Leaving::Lingering { .. }), "the clients have gone: {scene:?}");
    }
}

/// A withdrawal is a seal and then a release: the same steps in one call.
#[test]
fn a_seal_and_a_release_end_as_a_withdrawal_does() {
    for calls in [
        vec![Call::Seal { by: By::Withdrawal, force: false }],
        vec![
            Call::Seal { by: By::Operation(operation(1)), force: false },
            Call::Release { operation: operation(1), force: false },
        ],
    ] {
        let mut scene = Scene::new();
        for call in calls {
            scene.step(Step::Call(call), false);
            while scene.under_way.is_some() {
                scene.step(Step::End(true), false);
            }
        }
        assert!(scene.forgotten && !scene.rows && !scene.served, "{scene:?}");
    }
}

#[test]
fn a_repeated_seal_is_answered_with_the_present_clients() {
    let mut scene = Scene::new();
    let seal = |force| Step::Call(Call::Seal { by: By::Operation(operation(1)), force });
    scene.client = true;
    scene.step(seal(true), false);
    scene.step(Step::End(true), false);
    scene.step(Step::End(true), false);
    assert_eq!(scene.leaving, Leaving::Sealed(By::Operation(operation(1)), Seal::Kept), "by force: the control");
    scene.step(seal(false), false);
    let answer = Outcome::Clients { clients: connected(), current: true };
    let told = next(volume(), scene.leaving.clone(), answer);
    assert!(matches!(told.answer, Some(Err(Rejection::ClientsConnected { .. }))), "{told:?}");
    assert_eq!(told.leaving, Leaving::Sealed(By::Operation(operation(1)), Seal::Kept), "it stays sealed");
}

#[test]
fn only_the_sealing_operation_can_withdraw_a_sealed_volume() {
    let sealed = Leaving::Sealed(By::Operation(operation(1)), Seal::Kept);
    for call in [
        Call::Seal { by: By::Withdrawal, force: true },
        Call::Seal { by: By::Operation(operation(2)), force: true },
        Call::Unseal(operation(2)),
        Call::Release { operation: operation(2), force: true },
    ] {
        let answer = called(volume(), &sealed, call);
        assert!(matches!(answer, Err(Err(Rejection::Sealed { .. }))), "{call:?}: {answer:?}");
    }
    assert!(called(volume(), &sealed, Call::Unseal(operation(1))).is_ok(), "the control");
    assert_eq!(called(volume(), &Leaving::No, Call::Unseal(operation(1))), Err(Ok(nobody())), "asked for before");
}
