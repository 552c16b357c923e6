//! What is forgotten, and by which clock.
//!
//! A story is older than so many days when so much time was *seen to pass* since: the daemon's own running time (and that of
//! the host between two starts in one boot), measured by the clock that nobody can set and kept in the file. A wall clock
//! that jumps a year ahead makes nothing old; a host that was switched off keeps its stories longer.

use jiff::{SignedDuration, Timestamp};
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use crate::clock::{self, Steady};

/// How much running time passes between two looks, at least; a look happens within a write, so an idle daemon never wakes.
pub(super) const PACE: SignedDuration = SignedDuration::from_hours(24);

/// Rows forgotten in one go: whoever wants to write meanwhile has his turn in between.
const AT_ONCE: i64 = 2000;

/// The time that was seen to pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    time: Timestamp,
    at: Steady,
}

impl Seen {
    /// Goes on where it was left: time between two moments of one boot has passed, that between two boots is not known.
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

    /// What is older than this is forgotten.
    fn horizon(self, days: u32, now: Steady, wall: Timestamp) -> Timestamp {
        let days = SignedDuration::from_hours(i64::from(days) * 24);
        self.time(now).min(wall).checked_sub(days).unwrap_or(Timestamp::MIN)
    }

    /// Reads it.
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

    /// Writes it down, with what every volume that waits has left.
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

    /// Forgets some of the stories of volumes that were withdrawn long ago, and of the operations that ended then; false when
    /// nothing is left to forget.
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

/// Moves what waits into this boot: its clock began anew. What an earlier attachd has written waits as long as the wall
/// clock says, but never longer than was asked for.
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

    /// What happens to a host.
    #[derive(Debug, Clone)]
    enum Step {
        /// So many hours pass.
        Run(i32),
        /// The wall clock is set by so many hours.
        Set(i32),
        /// attachd starts again, in the same boot.
        Restart,
        /// The host was off for so many hours.
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
        /// Whatever the wall clock does after the start: nothing that is younger than the limit by running time is forgotten,
        /// when it was noted by a right clock.
        #[test]
        fn a_wall_clock_that_is_set_makes_nothing_old(steps in proptest::collection::vec(step(), 0..20), days in 1..90_u32) {
            let begun = Timestamp::from_second(1_800_000_000).unwrap();
            let (mut real, mut set, mut boot, mut boots) = (SignedDuration::ZERO, SignedDuration::ZERO, SignedDuration::ZERO, 0);
            let steady = |real: SignedDuration, boot: SignedDuration| Steady::from_micros(0).after(real - boot);
            let mut seen = Seen::resume(None, "0", steady(real, boot), begun);
            // Noted at the start, by a right clock.
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
    fn what_was_seen_to_pass_makes_old() {
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
