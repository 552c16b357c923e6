//! What an operation does on this host, through the engine's handle.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;

use super::super::facts::HereAct;
use super::super::faults;
use super::super::tools::Recorded;
use super::core::Drive;
use super::known::HERE_AGAIN;
use crate::clock::Steady;
use crate::engine::{Rejection, Stopping};
use crate::identity::VolumeId;
use crate::operation::{Progress, Step};
use crate::volume::{Intent, IntentOrigin, User};

/// The longest pause before it is looked again whether the clients of a volume are gone.
const LOOK_FOR_CLIENTS: Duration = Duration::from_secs(2);

impl Drive {
    /// Does something on this host.
    pub(super) async fn act_here(&mut self, act: HereAct) -> Result<(), Stopping> {
        let host = Arc::clone(&self.core.tools.host);
        let (id, user) = (self.operation.id, User(self.operation.uid));
        let answer = match act {
            HereAct::Intend(volume) => host.intend(self.intent(volume).await, Vec::new()).await?.map(drop),
            HereAct::Withdraw(volume) => host.withdraw(volume, user).await?,
            HereAct::Seal { volume, force } => {
                let sealed = host.seal(volume, id, force, user).await?;
                sealed.map(|flush| self.known.flush = Some(flush))
            }
            HereAct::Unseal(volume) => host.unseal(volume, id, user).await?,
            HereAct::Release(volume) => host.release(volume, id, user).await?,
        };
        self.done(answer);
        Ok(())
    }

    /// Puts it on record that the volume is wanted here, and the next step, in one transaction.
    pub(super) async fn intend(&mut self, volume: VolumeId, progress: Progress) -> Result<(), Stopping> {
        let host = Arc::clone(&self.core.tools.host);
        let (intent, record) = (self.intent(volume).await, self.step_record(progress.clone(), None));
        match host.intend(intent, record.changes.clone()).await? {
            Ok(Recorded::Together) => self.take_step(record),
            // It was wanted before.
            Ok(Recorded::Not) => self.go_on(progress, None).await?,
            Err(rejection) => self.done(Err(rejection)),
        }
        Ok(())
    }

    /// Notes the result of what was done, and when it is tried again if it failed.
    fn done(&mut self, answer: Result<(), Rejection>) {
        self.known.again = match &answer {
            Err(rejection) => self.tried_again(rejection),
            Ok(()) => None,
        };
        self.known.done = Some(answer.map_err(|rejection| faults::of(&rejection)));
    }

    /// Returns when something that was refused on this host is tried again. `None`: the refusal ends the operation.
    fn tried_again(&mut self, rejection: &Rejection) -> Option<Steady> {
        let (now, progress) = (self.now(), &self.operation.progress);
        // What is taken back must succeed in the end, and so must what the store refuses only for the moment.
        let insists = progress.given_up.is_some() || progress.step == Step::Release;
        if matches!(rejection, Rejection::Store(_)) || insists && faults::passes(rejection) {
            return Some(now.after(self.known.failed_here(HERE_AGAIN.1)));
        }
        // How long its caller has it wait for the clients. No event tells that they are gone.
        let wait = SignedDuration::from_secs(self.operation.request.client_wait_seconds().into());
        let until = self.known.call_at.after(wait);
        let waits = progress.step == Step::Seal && faults::is_of_clients(rejection) && now < until;
        waits.then(|| now.after(self.known.failed_here(LOOK_FOR_CLIENTS)).min(until))
    }

    async fn intent(&self, volume: VolumeId) -> Intent {
        Intent {
            volume,
            // If the own VM is unknown at the moment, the engine uses its own setting.
            vm_id: self.own_vm().await.map(|vm| vm.to_string()).unwrap_or_default(),
            size_bytes: None,
            deadline_seconds: None,
            deadline: None,
            created_at: self.core.tools.clock.wall(),
            uid: self.operation.uid,
            origin: IntentOrigin::Operation(self.operation.id),
        }
    }
}
