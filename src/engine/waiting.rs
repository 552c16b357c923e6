//! The callers that wait for the end of work that takes several turns. They stay here, and only the number of the
//! work goes through the inputs.

use std::collections::HashMap;

use tokio::sync::oneshot;

/// Receives the end of a resync, or why there was none.
pub(crate) type Done = oneshot::Sender<Result<(), String>>;

/// Work whose end is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Round(u64);

/// The callers, by the work that they wait for.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    begun: u64,
    rounds: HashMap<Round, Vec<Done>>,
}

impl Waiting {
    /// Starts a round. These callers wait for its end.
    pub(super) fn begin(&mut self, done: impl IntoIterator<Item = Done>) -> Round {
        self.begun += 1;
        let round = Round(self.begun);
        self.rounds.insert(round, done.into_iter().collect());
        round
    }

    /// Ends a round with this outcome.
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
    fn each_caller_is_notified_of_the_end_of_its_own_round_and_then_dropped() {
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
