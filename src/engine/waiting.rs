//! Who waits for the end of something that takes several turns: they stay here, and only its number goes through the inputs.

use std::collections::HashMap;

use tokio::sync::oneshot;

/// Where the end of a resync is told, or why there was none.
pub(crate) type Done = oneshot::Sender<Result<(), String>>;

/// Something whose end is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Round(u64);

/// Who waits for what.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    begun: u64,
    rounds: HashMap<Round, Vec<Done>>,
}

impl Waiting {
    /// It begins, and these wait for its end.
    pub(super) fn begin(&mut self, done: impl IntoIterator<Item = Done>) -> Round {
        self.begun += 1;
        let round = Round(self.begun);
        self.rounds.insert(round, done.into_iter().collect());
        round
    }

    /// It has ended like this.
    pub(super) fn end(&mut self, round: Round, outcome: &Result<(), String>) {
        for done in self.rounds.remove(&round).into_iter().flatten() {
            let _ = done.send(outcome.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[test]
    fn each_who_waits_hears_of_the_end_of_its_own_round_and_nothing_is_kept_afterwards() {
        let mut waiting = Waiting::default();
        let ([one, two, other], mut heard): ([Done; 3], Vec<_>) = {
            let [a, b, c] = [(); 3].map(|()| oneshot::channel());
            ([a.0, b.0, c.0], vec![a.1, b.1, c.1])
        };
        let first = waiting.begin([one, two]);
        let second = waiting.begin([other]);
        waiting.end(first, &Err("why".to_owned()));
        let heard_now = |heard: &mut Vec<oneshot::Receiver<_>>, n: usize| heard[n].try_recv().ok();
        assert_eq!(heard_now(&mut heard, 0), Some(Err("why".to_owned())));
        assert_eq!(heard_now(&mut heard, 1), Some(Err("why".to_owned())));
        assert_eq!(heard_now(&mut heard, 2), None, "the control");
        waiting.end(second, &Ok(()));
        assert_eq!(heard_now(&mut heard, 2), Some(Ok(())));
        waiting.end(second, &Ok(()));
        assert!(waiting.rounds.is_empty());
    }
}
