//! Whether the NBD server serves: what the watch on its process tells, and what handshakes show.
//!
//! A process that runs need not answer: its port may be full, taken by another program or another one than attachd was
//! told. Whoever meets that (a volume's proof, a check of the exports, a look at health) has the engine ask the server once
//! itself, without an export. If it does not answer, it counts as silent: nothing is `ready`, health says so, and it is
//! asked again at growing intervals. When it answers, everything is proven anew. Nobody asks while nobody doubts.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Engine;
use super::input::{Input, Request};
use super::settle::pause;
use super::{Handle, Stopping};
use crate::export::probe::ProbeError;
use crate::export::server::Server;
use crate::identity::VolumeId;

/// An answer so old is taken for one of now.
const FRESH: Duration = Duration::from_secs(1);

/// What is known of the server by its handshakes.
#[derive(Debug, Default)]
pub struct Handshakes {
    /// What the watch tells.
    watched: Option<Server>,
    /// Counts what the watch has told: an answer of the server before says nothing about this one.
    life: u64,
    /// It was asked, and has not answered yet: since when.
    asking: Option<Instant>,
    /// When it answered last.
    answered: Option<Instant>,
    silence: Option<Silence>,
    /// A silent one will be asked again by itself.
    again: bool,
    /// Who waits until it has been asked.
    waiting: Vec<oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Silence {
    error: ProbeError,
    why: String,
    attempts: u32,
}

/// What a handshake without an export has shown; an error with what was found at the port.
pub type Greeted = Result<(), (ProbeError, String)>;

impl Handshakes {
    /// How long an answer has been waited for.
    pub fn asking_for(&self, now: Instant) -> Option<Duration> {
        self.asking.map(|since| now.saturating_duration_since(since))
    }

    /// The server as it is: it has to run, and not to be silent.
    fn judged(&self) -> Option<Server> {
        match (&self.watched, &self.silence) {
            (Some(Server::Up { pid }), Some(silence)) => Some(Server::Silent { pid: *pid, why: silence.why.clone() }),
            (watched, _) => watched.clone(),
        }
    }

    /// A volume's handshake has succeeded: the server answers.
    pub(super) fn heard(&mut self, now: Instant) {
        self.answered = Some(now);
    }

    /// Takes in an answer.
    fn take(&mut self, greeted: Greeted, now: Instant) {
        let asked = self.asking.take();
        match greeted {
            // Somebody else was answered meanwhile: this one is of a past moment.
            Err((error, _)) if error.is_own() => {}
            Err(_) if asked.is_some_and(|asked| self.answered.is_some_and(|answered| answered > asked)) => {}
            Ok(()) => {
                self.answered = Some(now);
                self.silence = None;
            }
            Err((error, found)) => {
                let attempts = self.silence.as_ref().map_or(0, |silence| silence.attempts) + 1;
                let same = |old: &&mut Silence| std::mem::discriminant(&old.error) == std::mem::discriminant(&error);
                // The same words as long as it is the same trouble: they are told once.
                if let Some(silence) = self.silence.as_mut().filter(same) {
                    silence.attempts = attempts;
                } else {
                    let why = if found.is_empty() { error.to_string() } else { format!("{error}; {found}") };
                    self.silence = Some(Silence { error, why, attempts });
                }
            }
        }
    }
}

impl Handle {
    /// Has the server asked whether it answers, unless that was just done or is costly, and waits for the answer.
    pub async fn ask_server(&self) -> Result<(), Stopping> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::AskServer(reply)).await?;
        // Whoever is not answered was told enough: the engine knows what it knows.
        let _ = answer.await;
        Ok(())
    }

    /// A client would not have been served: these volumes are to be proven anew, and perhaps it is the server's doing.
    pub async fn doubt(&self, volumes: Vec<VolumeId>, server: bool) -> Result<(), Stopping> {
        self.ask(Request::Doubt { volumes, server }).await
    }
}

impl Engine {
    /// The watch tells of the server.
    pub(super) fn server_changed(&mut self, server: Server) {
        let handshakes = &mut self.world.handshakes;
        if handshakes.watched.as_ref() == Some(&server) {
            return;
        }
        let first = handshakes.watched.is_none();
        handshakes.watched = Some(server);
        handshakes.life += 1;
        handshakes.silence = None;
        handshakes.again = false;
        handshakes.asking = None;
        handshakes.answered = None;
        // Who asked before it was known that there is one still wants to know whether it answers.
        let waiting = std::mem::take(&mut handshakes.waiting);
        for reply in waiting.into_iter().filter(|_| first) {
            self.server_is_asked_for(reply);
        }
        self.judge_server();
    }

    /// Somebody wants to know whether the server answers now.
    pub(super) fn server_is_asked_for(&mut self, reply: oneshot::Sender<()>) {
        let now = self.tools.clock.now();
        let handshakes = &mut self.world.handshakes;
        let fresh = handshakes.answered.is_some_and(|at| now.saturating_duration_since(at) < FRESH);
        let costly = self.tools.server.is_started_for_each();
        let enough = match handshakes.watched {
            // It is being looked for.
            None => false,
            Some(Server::Up { .. }) => fresh || costly,
            Some(Server::Down { .. } | Server::Silent { .. }) => true,
        };
        if enough {
            let _ = reply.send(());
            return;
        }
        handshakes.waiting.push(reply);
        self.greet_server();
    }

    /// A client of these volumes would not have been served.
    pub(super) fn doubt(&mut self, volumes: Vec<VolumeId>, server: bool) {
        let epoch = self.next_epoch();
        for id in &volumes {
            if let Some(volume) = self.world.volume_mut(*id) {
                volume.disprove(epoch);
            }
        }
        self.settle_some(volumes, None);
        if server {
            self.greet_server();
        }
    }

    /// Asks the server whether it answers at all. At most one question is under way.
    pub(super) fn greet_server(&mut self) {
        let handshakes = &mut self.world.handshakes;
        if handshakes.asking.is_some() || !matches!(handshakes.watched, Some(Server::Up { .. })) {
            return;
        }
        handshakes.asking = Some(self.tools.clock.now());
        let life = handshakes.life;
        let step = self.tools.server.greet();
        self.outside("step.greet", step, move |greeted| {
            let greeted = greeted.unwrap_or_else(|died| Err((ProbeError::Died(died.to_string()), String::new())));
            Input::Greeted { life, greeted }
        });
    }

    /// The server has answered, or has not.
    pub(super) fn greeted(&mut self, life: u64, greeted: Greeted) {
        let handshakes = &mut self.world.handshakes;
        if life != handshakes.life {
            return;
        }
        handshakes.take(greeted, self.tools.clock.now());
        if let Some(wait) = handshakes.silence.as_ref().map(|silence| pause(silence.attempts))
            && !std::mem::replace(&mut handshakes.again, true)
        {
            self.later(wait, Input::GreetAgain { life });
        }
        self.judge_server();
        self.world.handshakes.waiting.clear();
    }

    /// A silent server is asked once more.
    pub(super) fn greet_again(&mut self, life: u64) {
        let handshakes = &mut self.world.handshakes;
        if life != handshakes.life {
            return;
        }
        handshakes.again = false;
        if handshakes.silence.is_some() {
            self.greet_server();
        }
    }

    /// Draws the conclusions, if the server is another thing than it was.
    fn judge_server(&mut self) {
        let server = self.world.handshakes.judged();
        if self.world.server == server {
            return;
        }
        match &server {
            Some(Server::Up { pid }) => tracing::info!(pid, "the NBD server is up"),
            Some(Server::Silent { pid, why }) => tracing::warn!(pid, why, "the NBD server runs, but does not answer"),
            Some(Server::Down { why }) => tracing::warn!(why, "the NBD server is down"),
            None => {}
        }
        // At the start everything has just been read.
        let up_again = self.world.server.is_some() && matches!(server, Some(Server::Up { .. }));
        self.world.server = server;
        if self.server_is_up() {
            self.tell_anew();
        }
        // At one stroke, for each of them: what an earlier server has shown is never taken for this one's.
        let (epoch, readings) = (self.next_epoch(), self.readings);
        for volume in self.world.volumes_mut() {
            volume.disprove(epoch);
            if up_again && volume.published {
                volume.look_after = readings;
            }
        }
        self.settle_some(self.world.ids(), None);
    }

    pub(super) fn server_is_up(&self) -> bool {
        matches!(self.world.server, Some(Server::Up { .. }))
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
