//! Tracks whether the NBD server serves: what the watch on its process reports, and what handshakes show.
//!
//! A running process need not answer: its port may be full, or be taken by another program, or attachd may be
//! configured with another port. Whoever notices that (a volume's proof, a check of the exports, a request for
//! health) makes the engine check the server once itself, without an export. If the server does not answer, it counts
//! as silent. Then nothing is `ready`, health shows the failure, and the check is repeated at growing intervals. When
//! the server answers, everything is proven anew. As long as nobody has a doubt, nobody checks.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::pause::pause;
use super::tools::Greeted;
use crate::export::probe::ProbeError;
use crate::export::server::Server;

/// Up to this age an answer counts as present.
const FRESH: Duration = Duration::from_secs(1);

/// What handshakes have shown about the server.
#[derive(Debug, Default)]
pub struct Handshakes {
    /// What the watch reports.
    watched: Option<Server>,
    /// The number of reports of the watch. An answer of an earlier server says nothing about this one.
    life: u64,
    /// Since when a check has been running.
    asking: Option<Instant>,
    /// When the server answered last.
    answered: Option<Instant>,
    silence: Option<Silence>,
    /// Whether a timer for the check of a silent server runs.
    again: bool,
    /// The callers that wait until the server has been checked.
    waiting: Vec<oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Silence {
    error: ProbeError,
    why: String,
    attempts: u32,
}

impl Handshakes {
    /// Returns how long an answer has been waited for.
    pub fn asking_for(&self, now: Instant) -> Option<Duration> {
        self.asking.map(|since| now.saturating_duration_since(since))
    }

    /// Returns the server's state. It is up only if it runs and is not silent.
    pub(super) fn judged(&self) -> Option<Server> {
        match (&self.watched, &self.silence) {
            (Some(Server::Up { pid }), Some(silence)) => Some(Server::Silent { pid: *pid, why: silence.why.clone() }),
            (watched, _) => watched.clone(),
        }
    }

    /// Records that a volume's handshake has succeeded, so that the server answers.
    pub(super) fn heard(&mut self, now: Instant) {
        self.answered = Some(now);
    }

    /// Handles an answer.
    fn take(&mut self, greeted: Greeted, now: Instant) {
        let asked = self.asking.take();
        match greeted {
            // Another caller was answered in between, so this failure is of a past moment.
            Err((error, _)) if error.is_own() => {}
            Err(_) if asked.is_some_and(|asked| self.answered.is_some_and(|answered| answered > asked)) => {}
            Ok(()) => {
                self.answered = Some(now);
                self.silence = None;
            }
            Err((error, found)) => {
                let attempts = self.silence.as_ref().map_or(0, |silence| silence.attempts) + 1;
                let same = |old: &&mut Silence| std::mem::discriminant(&old.error) == std::mem::discriminant(&error);
                // The same failure keeps its words, so that it is logged once.
                if let Some(silence) = self.silence.as_mut().filter(same) {
                    silence.attempts = attempts;
                } else {
                    let why = if found.is_empty() { error.to_string() } else { format!("{error}; {found}") };
                    self.silence = Some(Silence { error, why, attempts });
                }
            }
        }
    }

    /// Handles the watch's report. If it is new, returns the callers that asked before the server was known, and
    /// still wait.
    pub(super) fn watched(&mut self, server: Server) -> Option<Vec<oneshot::Sender<()>>> {
        if self.watched.as_ref() == Some(&server) {
            return None;
        }
        let waiting = if self.watched.is_none() { std::mem::take(&mut self.waiting) } else { Vec::new() };
        *self = Self { watched: Some(server), life: self.life + 1, ..Self::default() };
        Some(waiting)
    }

    /// Handles a request whether the server answers now. Returns whether the server must be checked for that.
    /// Otherwise the request is answered.
    pub(super) fn wish(&mut self, reply: oneshot::Sender<()>, costly: bool, now: Instant) -> bool {
        let fresh = self.answered.is_some_and(|at| now.saturating_duration_since(at) < FRESH);
        let enough = match self.watched {
            // The watch is looking for the server.
            None => false,
            Some(Server::Up { .. }) => fresh || costly,
            Some(Server::Down { .. } | Server::Silent { .. }) => true,
        };
        if enough {
            let _ = reply.send(());
        } else {
            self.waiting.push(reply);
        }
        !enough
    }

    /// Starts a check of the server. Returns the server's life if the check starts now. At most one check runs.
    pub(super) fn begin(&mut self, now: Instant) -> Option<u64> {
        if self.asking.is_some() || !matches!(self.watched, Some(Server::Up { .. })) {
            return None;
        }
        self.asking = Some(now);
        Some(self.life)
    }

    /// Handles the result of a check in that life. Returns false if the life is past.
    pub(super) fn greeted(&mut self, life: u64, greeted: Greeted, now: Instant) -> bool {
        let current = life == self.life;
        if current {
            self.take(greeted, now);
        }
        current
    }

    /// Returns the time until a silent server is checked again, if no timer runs yet.
    pub(super) fn postpone(&mut self) -> Option<Duration> {
        let silence = self.silence.as_ref()?;
        (!std::mem::replace(&mut self.again, true)).then(|| pause(silence.attempts))
    }

    /// Returns whether a silent server must be checked again, when the timer of that life ends.
    pub(super) fn is_due(&mut self, life: u64) -> bool {
        if life != self.life {
            return false;
        }
        self.again = false;
        self.silence.is_some()
    }

    /// Notifies all waiting callers.
    pub(super) fn tell(&mut self) {
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> Greeted {
        let error = ProbeError::Connect(([127, 0, 0, 1], 1).into(), std::io::ErrorKind::ConnectionRefused.into());
        Err((error, "nobody listens there".to_owned()))
    }

    #[test]
    fn callers_are_answered_from_a_recent_check_or_wait_for_the_running_one() {
        let (mut handshakes, now) = (Handshakes::default(), Instant::now());
        let asked = |handshakes: &mut Handshakes, costly| {
            let (reply, answer) = oneshot::channel();
            (handshakes.wish(reply, costly, now), answer)
        };
        let (ask, mut early) = asked(&mut handshakes, false);
        assert!(ask && handshakes.begin(now).is_none(), "nobody knows yet whether there is a server");
        let up = Server::Up { pid: Some(7) };
        let mut waiting = handshakes.watched(up.clone()).expect("that is new");
        assert!(waiting.len() == 1 && handshakes.watched(up.clone()).is_none());
        assert!(handshakes.wish(waiting.remove(0), false, now));
        let life = handshakes.begin(now).expect("it is asked");
        assert!(handshakes.begin(now).is_none(), "one question at a time");
        assert!(early.try_recv().is_err());
        assert!(!handshakes.greeted(life + 1, Ok(()), now), "of another life");
        assert!(handshakes.greeted(life, Ok(()), now) && handshakes.postpone().is_none());
        handshakes.tell();
        assert_eq!(early.try_recv(), Err(oneshot::error::TryRecvError::Closed), "whoever waited is told");
        let (ask, mut answer) = asked(&mut handshakes, false);
        assert!(!ask && answer.try_recv().is_ok(), "it has just answered");
        // For comparison: an old answer; a server that is started for each connection; a server that is down.
        let late = now + FRESH;
        let wish = |handshakes: &mut Handshakes, costly| handshakes.wish(oneshot::channel().0, costly, late);
        assert!(wish(&mut handshakes, false) && !wish(&mut handshakes, true));
        handshakes.watched(Server::Down { why: "gone".to_owned() });
        assert!(!wish(&mut handshakes, false));
    }

    #[test]
    fn a_silent_server_is_checked_again_by_one_timer_per_life() {
        let (mut handshakes, now) = (Handshakes::default(), Instant::now());
        handshakes.watched(Server::Up { pid: Some(7) });
        let life = handshakes.begin(now).unwrap();
        handshakes.greeted(life, refused(), now);
        assert_eq!((handshakes.postpone(), handshakes.postpone()), (Some(pause(1)), None));
        assert!(!handshakes.is_due(life + 1) && handshakes.is_due(life));
        handshakes.begin(now);
        handshakes.greeted(life, refused(), now);
        assert_eq!(handshakes.postpone(), Some(pause(2)), "later and later");
        handshakes.begin(now);
        handshakes.greeted(life, Ok(()), now);
        assert!(!handshakes.is_due(life) && handshakes.postpone().is_none(), "it has answered");
    }

    #[test]
    fn a_server_that_runs_and_does_not_answer_is_silent_until_it_answers() {
        let up = Server::Up { pid: Some(7) };
        let now = Instant::now();
        let later = now + Duration::from_millis(1);
        let mut handshakes = Handshakes { watched: Some(up.clone()), ..Handshakes::default() };
        assert_eq!(handshakes.judged(), Some(up.clone()));
        let own = std::io::Error::from(rustix::io::Errno::MFILE);
        handshakes.take(Err((ProbeError::Connect(([127, 0, 0, 1], 1).into(), own), String::new())), now);
        assert_eq!(handshakes.judged(), Some(up.clone()), "who could not ask has learnt nothing");
        handshakes.take(refused(), now);
        let silent = handshakes.judged();
        assert!(matches!(&silent, Some(Server::Silent { pid: Some(7), why }) if why.ends_with("nobody listens there")));
        handshakes.take(refused(), now);
        assert_eq!(handshakes.judged(), silent, "the same trouble is told once");
        let full = ProbeError::Broken(([127, 0, 0, 1], 1).into(), std::io::ErrorKind::UnexpectedEof.into());
        handshakes.take(Err((full, "400 clients are connected".to_owned())), now);
        assert_ne!(handshakes.judged(), silent);
        assert_eq!(handshakes.silence.as_ref().unwrap().attempts, 3);
        handshakes.take(Ok(()), now);
        assert_eq!(handshakes.judged(), Some(up.clone()));
        handshakes.asking = Some(now);
        handshakes.heard(later);
        handshakes.take(refused(), now);
        assert_eq!(handshakes.judged(), Some(up), "somebody was answered since");
        handshakes.take(refused(), now);
        handshakes.watched = Some(Server::Down { why: "gone".to_owned() });
        assert_eq!(handshakes.judged(), Some(Server::Down { why: "gone".to_owned() }), "what is down is not silent");
    }
}
