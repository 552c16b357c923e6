//! Brings one target up to date, and sleeps when nothing is owed.
//!
//! What changes in quick succession is gathered for a moment and written once. What a target refuses is set aside, so that
//! it keeps no other waiting; a target that takes nothing is tried again at growing intervals, which changes nothing for
//! anybody else.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::rows::{Rows, rows};
use super::{Target, TargetError};
use crate::clock;
use crate::identity::VolumeId;
use crate::reason::Code;
use crate::store::{Changed, Follower, Progress};

/// Volumes shown in one transaction: while that goes on the truth's own writer waits.
const AT_ONCE: i64 = 24;

/// How long is waited for what.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    /// What changes is gathered before it is looked at.
    pub(super) gather: Duration,
    /// First and longest wait before a target that takes nothing is tried again; it doubles in between.
    pub(super) away: (Duration, Duration),
    /// The same for what is set aside: it takes somebody to put that right.
    pub(super) set_aside: (Duration, Duration),
    /// Nothing is owed before the connection goes.
    pub(super) quiet: Duration,
}

/// The daemon's.
pub(super) const PACE: Pace = Pace {
    gather: Duration::from_millis(20),
    away: (Duration::from_millis(200), Duration::from_secs(30)),
    set_aside: (Duration::from_mins(1), Duration::from_hours(1)),
    quiet: Duration::from_secs(1),
};

/// Shows what the follower is told of in the target, until the store closes.
pub(super) async fn run<T: Target>(follower: Follower, target: T, basis: String, pace: Pace) {
    let mut task = Task {
        follower,
        target,
        pace,
        progress: Progress::default(),
        set_aside: BTreeMap::new(),
        attempts: 0,
        again: None,
    };
    task.begin(&basis).await;
    while task.turn().await {}
    task.follower.close().await;
}

struct Task<T> {
    follower: Follower,
    target: T,
    pace: Pace,
    progress: Progress,
    /// What the target has refused, and why.
    set_aside: BTreeMap<VolumeId, String>,
    /// How often in a row the target took nothing.
    attempts: u32,
    /// When what is set aside is tried again, and how long that was waited for.
    again: Option<(Instant, Duration)>,
}

impl<T: Target> Task<T> {
    /// Goes on where it was, and finds out whether it can.
    async fn begin(&mut self, basis: &str) {
        loop {
            let last = self.follower.is_last();
            let begun = match self.follower.resume(basis).await {
                Ok(()) => self.target.write(&[], &mut self.follower).await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match begun {
                Ok(()) => return self.works(),
                Err(_) if last => return,
                Err(why) => self.failed(why).await,
            }
        }
    }

    /// Shows some of what is owed, or waits for more. False: that was all, or all that can be done.
    async fn turn(&mut self) -> bool {
        // Asked before the look: what is noted after it is looked at in the next turn.
        let last = self.follower.is_last();
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

    /// False: nothing is owed.
    async fn show_some(&mut self) -> Result<bool, String> {
        let changed = self.follower.next(AT_ONCE).await.map_err(|error| error.to_string())?;
        let Some(last) = changed.last().map(|changed| changed.number) else { return Ok(false) };
        if self.progress.behind_since.is_none() {
            self.progress.behind_since = Some(clock::wall());
            self.follower.stands(self.progress.clone());
        }
        let mut refused: BTreeMap<VolumeId, String> = BTreeMap::new();
        let mut rows = Vec::new();
        for changed in &changed {
            match present(changed) {
                Ok(present) => rows.push(present),
                Err(why) => drop(refused.insert(changed.volume, why)),
            }
        }
        match self.target.write(&rows, &mut self.follower).await {
            Ok(()) => {}
            Err(TargetError::Away(why)) => return Err(why),
            // One for each, so that none fails for another's sake.
            Err(TargetError::Refused(_)) => {
                for row in rows {
                    match self.target.write(std::slice::from_ref(&row), &mut self.follower).await {
                        Ok(()) => {}
                        Err(TargetError::Away(why)) => return Err(why),
                        Err(TargetError::Refused(why)) => drop(refused.insert(row.volume, why)),
                    }
                }
            }
        }
        let names: Vec<VolumeId> = refused.keys().copied().collect();
        let shown = changed.iter().map(|changed| changed.volume);
        let shown: Vec<VolumeId> =
            shown.filter(|volume| self.set_aside.contains_key(volume) && !refused.contains_key(volume)).collect();
        self.follower.settle(last, &names, &shown).await.map_err(|error| error.to_string())?;
        self.set_apart(refused, &shown);
        self.works();
        Ok(true)
    }

    /// Remembers what was refused, and says so once.
    fn set_apart(&mut self, refused: BTreeMap<VolumeId, String>, shown: &[VolumeId]) {
        for volume in shown {
            self.set_aside.remove(volume);
            tracing::info!(VOLUME_ID = %volume, target = self.follower.name(), "the volume is shown again");
        }
        for (volume, why) in refused {
            if self.set_aside.get(&volume) != Some(&why) {
                let code = Code::ProjectionRefused;
                tracing::error!(
                    VOLUME_ID = %volume, CODE = %code, target = self.follower.name(),
                    "the predecessor's tables do not take the volume: {why}. {}", code.hint()
                );
            }
            self.set_aside.insert(volume, why);
        }
        if self.set_aside.is_empty() {
            self.again = None;
        } else if self.again.is_none() {
            self.again = Some((Instant::now() + self.pace.set_aside.0, self.pace.set_aside.0));
        }
    }

    /// It takes what it is given.
    fn works(&mut self) {
        self.attempts = 0;
        if let Some(before) = self.progress.failure.take() {
            tracing::info!(
                target = self.follower.name(),
                "the predecessor's tables can be written again; before: {before}"
            );
        }
        self.say();
    }

    /// It takes nothing: that is said once, and tried again later.
    async fn failed(&mut self, why: String) {
        // A lock that another has for a moment is no news.
        if self.attempts > 0 && self.progress.failure.as_ref() != Some(&why) {
            let code = Code::ProjectionBehind;
            tracing::error!(
                CODE = %code, target = self.follower.name(),
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
            () = closing(&mut self.follower) => {}
        }
    }

    fn say(&mut self) {
        self.progress.example = self.set_aside.first_key_value().map(|(volume, why)| (*volume, why.clone()));
        self.follower.stands(self.progress.clone());
    }

    /// Until something may have changed, or what is set aside is to be tried again.
    async fn sleep(&mut self) {
        tokio::select! {
            noted = self.follower.noted() => return self.gather(noted).await,
            () = until(self.again.map(|(at, _)| at)) => return self.try_set_aside_again().await,
            () = sleep(self.pace.quiet) => {}
        }
        self.follower.rest().await;
        tokio::select! {
            noted = self.follower.noted() => self.gather(noted).await,
            () = until(self.again.map(|(at, _)| at)) => self.try_set_aside_again().await,
        }
    }

    async fn gather(&self, more_will_come: bool) {
        if more_will_come {
            sleep(self.pace.gather).await;
        }
    }

    /// It is owed again, and says so itself when it is refused once more.
    async fn try_set_aside_again(&mut self) {
        if let Err(error) = self.follower.try_set_aside_again().await {
            tracing::debug!(%error, "what is set aside could not be tried again");
        }
        let pause = self.again.map_or(self.pace.set_aside.0, |(_, pause)| (pause * 2).min(self.pace.set_aside.1));
        self.again = Some((Instant::now() + pause, pause));
    }
}

/// What is to be shown of it.
fn present(changed: &Changed) -> Result<Rows, String> {
    match &changed.record {
        Ok(Some(record)) => Ok(rows(record)),
        Ok(None) => Ok(Rows::none(changed.volume)),
        Err(why) => Err(why.clone()),
    }
}

/// Resolves when nothing will change any more.
async fn closing(follower: &mut Follower) {
    while follower.noted().await {}
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
