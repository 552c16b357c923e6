//! Keeps one target up to date, and sleeps when there is nothing to write.
//!
//! Quick changes are collected for a moment and written once. Rows that a target refuses are set aside, so that other
//! rows need not wait. A target that accepts nothing is tried again with a back-off; nothing else waits for it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::source::{Log, Noted, Shown, Source};
use super::{Target, TargetError};
use crate::clock;
use crate::reason::Code;
use crate::store::Progress;

/// The number of records written in one transaction; during the transaction the store's own writer waits.
const AT_ONCE: i64 = 24;

/// The times that the task waits.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    /// How long changes are collected before they are read.
    pub(super) gather: Duration,
    /// The first and the longest back-off for a target that accepts nothing; it doubles in between.
    pub(super) away: (Duration, Duration),
    /// The same for rows that are set aside, which need a person to correct something.
    pub(super) set_aside: (Duration, Duration),
    /// How long nothing must be pending before the connection is closed.
    pub(super) quiet: Duration,
}

/// The daemon's times.
pub(super) const PACE: Pace = Pace {
    gather: Duration::from_millis(20),
    away: (Duration::from_millis(200), Duration::from_secs(30)),
    set_aside: (Duration::from_mins(1), Duration::from_hours(1)),
    quiet: Duration::from_secs(1),
};

/// Writes what has changed in the source to the target, until the store closes.
pub(super) async fn run<S: Source, T: Target<S::Shown>>(source: S, target: T, pace: Pace) {
    let mut task = ProjectionTask {
        source,
        target,
        pace,
        progress: Progress::default(),
        set_aside: BTreeMap::new(),
        attempts: 0,
        again: None,
    };
    task.begin().await;
    while task.turn().await {}
    task.target.rest().await;
    task.source.follower().rest().await;
}

type Id<S> = <<S as Source>::Shown as Shown>::Id;

struct ProjectionTask<S: Source, T> {
    source: S,
    target: T,
    pace: Pace,
    progress: Progress,
    /// The records whose rows the target has refused, with the reason.
    set_aside: BTreeMap<Id<S>, String>,
    /// How often in a row the target accepted nothing.
    attempts: u32,
    /// When the rows that are set aside are tried again, and the back-off before that.
    again: Option<(Instant, Duration)>,
}

impl<S: Source, T: Target<S::Shown>> ProjectionTask<S, T> {
    /// Resumes where the last run stopped, and checks whether the target can be written.
    async fn begin(&mut self) {
        loop {
            let last = self.source.follower().is_last();
            match self.begun().await {
                Ok(()) => return self.works(),
                Err(_) if last => return,
                Err(why) => self.failed(why).await,
            }
        }
    }

    async fn begun(&mut self) -> Result<(), String> {
        self.source.resume().await.map_err(|error| error.to_string())?;
        self.target.write(&[], self.source.follower()).await.map_err(|error| error.to_string())?;
        if T::LOSES_ROWS {
            self.source.owe_all().await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Writes some pending rows, or waits for more. Returns false when everything is done, or everything that is
    /// possible.
    async fn turn(&mut self) -> bool {
        // This is read before the changes. A change that is noted later is handled in the next turn.
        let last = self.source.follower().is_last();
        match self.show_some().await {
            Ok(true) => true,
            Ok(false) | Err(_) if last => false,
            Ok(false) => {
                self.progress.behind_since = None;
                self.say();
                self.sleep().await;
                true
            }
            Err(why) => {
                self.failed(why).await;
                true
            }
        }
    }

    /// Writes some pending rows. Returns false if nothing is pending.
    async fn show_some(&mut self) -> Result<bool, String> {
        let noted = self.source.next(AT_ONCE).await.map_err(|error| error.to_string())?;
        let Some(last) = noted.last().map(|noted| noted.number) else { return Ok(false) };
        if self.progress.behind_since.is_none() {
            self.progress.behind_since = Some(clock::wall());
            self.source.follower().stands(self.progress.clone());
        }
        let ids: Vec<Id<S>> = noted.iter().map(|noted| noted.id).collect();
        let mut refused: BTreeMap<Id<S>, String> = BTreeMap::new();
        let mut rows = Vec::new();
        for Noted { id, shown, .. } in noted {
            match shown {
                Ok(shown) => rows.push(shown),
                Err(why) => drop(refused.insert(id, why)),
            }
        }
        match self.target.write(&rows, self.source.follower()).await {
            Ok(()) => {}
            Err(TargetError::Away(why)) => return Err(why),
            // One write for each record, so that none fails because of another.
            Err(TargetError::Refused(_)) => {
                for row in rows {
                    match self.target.write(std::slice::from_ref(&row), self.source.follower()).await {
                        Ok(()) => {}
                        Err(TargetError::Away(why)) => return Err(why),
                        Err(TargetError::Refused(why)) => drop(refused.insert(row.id(), why)),
                    }
                }
            }
        }
        let names: Vec<Id<S>> = refused.keys().copied().collect();
        let shown = ids.into_iter().filter(|id| self.set_aside.contains_key(id) && !refused.contains_key(id));
        let shown: Vec<Id<S>> = shown.collect();
        self.source.settle(last, &names, &shown).await.map_err(|error| error.to_string())?;
        self.set_apart(refused, &shown);
        if T::LOSES_ROWS && self.progress.failure.is_some() {
            // Some may be missing there since.
            self.source.owe_all().await.map_err(|error| error.to_string())?;
        }
        self.works();
        Ok(true)
    }

    /// Remembers what was refused, and logs it once.
    fn set_apart(&mut self, refused: BTreeMap<Id<S>, String>, shown: &[Id<S>]) {
        for id in shown {
            self.set_aside.remove(id);
            self.source.log(*id, &Log::Taken);
        }
        for (id, why) in refused {
            if self.set_aside.get(&id) != Some(&why) {
                self.source.log(id, &Log::Refused(&why));
            }
            self.set_aside.insert(id, why);
        }
        if self.set_aside.is_empty() {
            self.again = None;
        } else if self.again.is_none() {
            self.again = Some((Instant::now() + self.pace.set_aside.0, self.pace.set_aside.0));
        }
    }

    /// Notes that the target accepts rows.
    fn works(&mut self) {
        self.attempts = 0;
        if let Some(before) = self.progress.failure.take() {
            tracing::info!(
                target = self.source.follower().name(),
                "the predecessor's tables can be written again; before: {before}"
            );
        }
        self.say();
    }

    /// Notes that the target accepts nothing; logs this once and tries again later.
    async fn failed(&mut self, why: String) {
        // A lock that another program holds for a moment is not reported.
        if self.attempts > 0 && self.progress.failure.as_ref() != Some(&why) {
            let code = Code::ProjectionBehind;
            tracing::error!(
                CODE = %code, target = self.source.follower().name(),
                "the predecessor's tables cannot be written: {why}. {}", code.hint()
            );
            self.progress.failure = Some(why);
        }
        self.progress.behind_since.get_or_insert_with(clock::wall);
        self.say();
        let pause = (self.pace.away.0 * (1 << self.attempts.min(10))).min(self.pace.away.1);
        self.attempts += 1;
        tokio::select! {
            () = sleep(pause) => {}
            () = closing(self.source.follower()) => {}
        }
    }

    fn say(&mut self) {
        self.progress.example = self.set_aside.first_key_value().map(|(id, why)| (id.to_string(), why.clone()));
        self.source.follower().stands(self.progress.clone());
    }

    /// Waits until something may have changed, or until rows that were set aside are due again.
    async fn sleep(&mut self) {
        tokio::select! {
            noted = self.source.follower().noted() => return self.gather(noted).await,
            () = until(self.again.map(|(at, _)| at)) => return self.try_set_aside_again().await,
            () = sleep(self.pace.quiet) => {}
        }
        self.target.rest().await;
        self.source.follower().rest().await;
        tokio::select! {
            noted = self.source.follower().noted() => self.gather(noted).await,
            () = until(self.again.map(|(at, _)| at)) => self.try_set_aside_again().await,
        }
    }

    async fn gather(&self, more_will_come: bool) {
        if more_will_come {
            sleep(self.pace.gather).await;
        }
    }

    /// Makes the rows that were set aside pending again. If one is refused once more, that is noted again.
    async fn try_set_aside_again(&mut self) {
        if let Err(error) = self.source.try_set_aside_again().await {
            tracing::debug!(%error, "what is set aside could not be tried again");
        }
        let pause = self.again.map_or(self.pace.set_aside.0, |(_, pause)| (pause * 2).min(self.pace.set_aside.1));
        self.again = Some((Instant::now() + pause, pause));
    }
}

/// Waits until nothing will change any more.
async fn closing(follower: &mut crate::store::Follower) {
    while follower.noted().await {}
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
