//! Decides what history is deleted, and by which clock.
//!
//! The age of a timeline is the time that was *seen to pass*: the daemon's running time, and the host's between two
//! starts in one boot. That time is measured by the clock that nobody can set, and is kept in the file. So a wall
//! clock that jumps a year ahead makes nothing old, and a host that was switched off keeps its timelines longer.

use jiff::{SignedDuration, Timestamp};
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use crate::clock::{self, Steady};

/// The least running time between two deletions. A deletion happens beside a write, so that an idle daemon never
/// wakes.
pub(super) const PACE: SignedDuration = SignedDuration::from_hours(24);

/// The number of rows deleted in one transaction. Writers get their turn between two of them.
const AT_ONCE: i64 = 2000;

/// The time that was seen to pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    time: Timestamp,
    at: Steady,
}

impl Seen {
    /// Continues from the kept time. Time between two moments of one boot has passed. The time between two boots is
    /// not known.
    fn resume(kept: Option<(Timestamp, String, Steady)>, boot_id: &str, now: Steady, wall: Timestamp) -> Self {
        let time = match kept {
            None => wall,
            Some((time, boot, at)) if boot == boot_id => Self { time, at }.time(now),
            Some((time, ..)) => time,
        };
        Self { time, at: now }
    }

    fn time(self, now: Steady) -> Timestamp {
        self.time.checked_add(now.since(self.at).max(SignedDuration::ZERO)).unwrap_or(Timestamp::MAX)
    }

    /// Returns the horizon: what is older is deleted.
    fn horizon(self, days: u32, now: Steady, wall: Timestamp) -> Timestamp {
        let days = SignedDuration::from_hours(i64::from(days) * 24);
        self.time(now).min(wall).checked_sub(days).unwrap_or(Timestamp::MIN)
    }

    /// Reads the kept time from the file.
    pub(super) async fn load(connection: &mut SqliteConnection, boot_id: &str) -> sqlx::Result<Self> {
        let row = sqlx::query("SELECT seen, boot_id, steady FROM clock").fetch_optional(connection).await?;
        let kept = match row {
            None => None,
            Some(row) => {
                let seen = Timestamp::from_microsecond(row.try_get("seen")?).unwrap_or(Timestamp::UNIX_EPOCH);
                Some((seen, row.try_get("boot_id")?, Steady::from_micros(row.try_get("steady")?)))
            }
        };
        Ok(Self::resume(kept, boot_id, Steady::now(), clock::wall()))
    }

    /// Writes the time into the file, with the time that is left to every volume that waits.
    pub(super) async fn keep(self, connection: &mut SqliteConnection, boot_id: &str) -> sqlx::Result<()> {
        let now = Steady::now();
        sqlx::query(
            "INSERT INTO clock (id, seen, boot_id, steady) VALUES (1, ?, ?, ?) \
             ON CONFLICT (id) DO UPDATE SET seen = excluded.seen, boot_id = excluded.boot_id, steady = excluded.steady",
        )
        .bind(self.time(now).as_microsecond())
        .bind(boot_id)
        .bind(now.as_micros())
        .execute(&mut *connection)
        .await?;
        for kept in [
            "UPDATE intents SET waits_left = waits_until - ? WHERE waits_boot = ?",
            "UPDATE operations SET waits_left = waits_until - ? WHERE waits_boot = ? AND NOT settled",
        ] {
            sqlx::query(kept).bind(now.as_micros()).bind(boot_id).execute(&mut *connection).await?;
        }
        Ok(())
    }

    /// Deletes some of the timelines of volumes that were withdrawn before the horizon, and some of the operations
    /// that ended before it. Returns false when nothing is left to delete.
    pub(super) async fn prune(self, connection: &mut SqliteConnection, days: u32) -> sqlx::Result<bool> {
        let horizon = self.horizon(days, Steady::now(), clock::wall());
        let done = sqlx::query(
            "DELETE FROM timeline WHERE id IN (SELECT id FROM timeline WHERE at < ? \
             AND volume_id NOT IN (SELECT volume_id FROM intents) LIMIT ?)",
        )
        .bind(horizon.as_microsecond())
        .bind(AT_ONCE)
        .execute(&mut *connection)
        .await?;
        let ended = sqlx::query(
            "DELETE FROM operations WHERE number IN (SELECT number FROM operations WHERE settled AND completed_at < ? LIMIT ?)",
        )
        .bind(horizon.as_microsecond())
        .bind(AT_ONCE)
        .execute(connection)
        .await?;
        Ok([done, ended].iter().any(|done| done.rows_affected() == AT_ONCE.unsigned_abs()))
    }
}

/// Converts the deadlines of waiting volumes to this boot, whose clock began anew. A deadline that an earlier version
/// has written is converted by the wall clock, but is never longer than was asked for.
pub(super) async fn rebase(connection: &mut SqliteConnection, boot_id: &str) -> sqlx::Result<()> {
    let now = Steady::now().as_micros();
    for moved in [
        "UPDATE intents SET waits_until = ? + waits_left, waits_boot = ? WHERE waits_boot <> ?",
        "UPDATE operations SET waits_until = ? + waits_left, waits_boot = ? WHERE waits_boot <> ? AND NOT settled",
    ] {
        sqlx::query(moved).bind(now).bind(boot_id).bind(boot_id).execute(&mut *connection).await?;
    }
    sqlx::query(
        "UPDATE intents SET waits_boot = ?, waits_left = deadline_seconds * 1000000, waits_until = ? + \
         max(0, min(created_at + deadline_seconds * 1000000 - ?, deadline_seconds * 1000000)) \
         WHERE deadline_seconds IS NOT NULL AND waits_boot IS NULL",
    )
    .bind(boot_id)
    .bind(now)
    .bind(clock::wall().as_microsecond())
    .execute(connection)
    .await
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: SignedDuration = SignedDuration::from_hours(1);

    /// An event on a host.
    #[derive(Debug, Clone)]
    enum Step {
        /// This many hours pass.
        Run(i32),
        /// The wall clock is set by this many hours.
        Set(i32),
        /// attachd restarts in the same boot.
        Restart,
        /// The host was off for this many hours.
        Reboot(i32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..500).prop_map(Step::Run),
            (-100_000..100_000).prop_map(Step::Set),
            Just(Step::Restart),
            (0..500).prop_map(Step::Reboot),
        ]
    }

    proptest! {
        /// After the start the wall clock may change in any way. What was noted by a right clock and is younger than
        /// the limit by running time is not deleted.
        #[test]
        fn a_wall_clock_that_is_set_makes_nothing_old(steps in proptest::collection::vec(step(), 0..20), days in 1..90_u32) {
            let begun = Timestamp::from_second(1_800_000_000).unwrap();
            let (mut real, mut set, mut boot, mut boots) = (SignedDuration::ZERO, SignedDuration::ZERO, SignedDuration::ZERO, 0);
            let steady = |real: SignedDuration, boot: SignedDuration| Steady::from_micros(0).after(real - boot);
            let mut seen = Seen::resume(None, "0", steady(real, boot), begun);
            // The note was made at the start, by a right clock.
            for step in steps {
                match step {
                    Step::Run(hours) => real += HOUR * hours,
                    Step::Set(hours) => set += HOUR * hours,
                    Step::Restart => {
                        let now = steady(real, boot);
                        let kept = Some((seen.time(now), boots.to_string(), now));
                        seen = Seen::resume(kept, &boots.to_string(), now, begun + real + set);
                    }
                    Step::Reboot(hours) => {
                        let now = steady(real, boot);
                        let kept = Some((seen.time(now), boots.to_string(), now));
                        real += HOUR * hours;
                        (boot, boots) = (real, boots + 1);
                        seen = Seen::resume(kept, &boots.to_string(), steady(real, boot), begun + real + set);
                    }
                }
                let horizon = seen.horizon(days, steady(real, boot), begun + real + set);
                let limit = HOUR * (i32::try_from(days).unwrap() * 24);
                prop_assert!(horizon <= begun + real - limit, "forgotten too early");
            }
        }
    }

    #[test]
    fn running_time_makes_history_old() {
        let wall = Timestamp::from_second(1_800_000_000).unwrap();
        let seen = Seen::resume(None, "a", Steady::from_micros(0), wall);
        let later = Steady::from_micros(0).after(HOUR * 48);
        assert_eq!(seen.horizon(1, later, wall + HOUR * 48), wall + HOUR * 24);
        assert_eq!(
            seen.horizon(1, later, wall - HOUR * 9000),
            wall - HOUR * 9024,
            "never later than the wall clock says"
        );
    }
}
