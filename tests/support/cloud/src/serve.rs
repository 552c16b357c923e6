//! Connections: a thread each, so that a fault can do to one whatever it likes.

use crate::answer::{Answer, Refusal, Shape};
use crate::cloud::Inner;
use crate::door::{self, House};
use crate::log::{Call, Outcome};
use crate::request::Request;
use crate::script::Fault;
use crate::world::Age;
use anyhow::{Context, Result};
use jiff::Timestamp;
use rustix::net::sockopt::set_socket_linger;
use std::collections::BTreeMap;
use std::io::BufReader;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Where the API is, as in CloudStack.
const PATH: &str = "/client/api";

/// One that listens, until it is dropped.
pub(crate) struct Server {
    address: SocketAddr,
    open: Arc<Open>,
    listens: Option<JoinHandle<()>>,
}

/// The connections there are.
#[derive(Default)]
struct Open {
    ends: AtomicBool,
    streams: Mutex<BTreeMap<u64, TcpStream>>,
}

impl Open {
    fn streams(&self) -> MutexGuard<'_, BTreeMap<u64, TcpStream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    pub(crate) fn start(listen: SocketAddr, inner: &Arc<Inner>) -> Result<Server> {
        let listener = TcpListener::bind(listen).with_context(|| format!("listening on {listen}"))?;
        let address = listener.local_addr()?;
        let open = Arc::new(Open::default());
        let (all, inner) = (Arc::clone(&open), Arc::clone(inner));
        let listens = thread::spawn(move || {
            for (number, stream) in (0..).zip(listener.incoming().flatten()) {
                if all.ends.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(held) = stream.try_clone() else { continue };
                all.streams().insert(number, held);
                let (all, inner) = (Arc::clone(&all), Arc::clone(&inner));
                thread::spawn(move || {
                    converse(&inner, stream);
                    all.streams().remove(&number);
                });
            }
        });
        Ok(Server { address, open, listens: Some(listens) })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.open.ends.store(true, Ordering::SeqCst);
        // One more connection, so that it looks.
        let woken = TcpStream::connect(self.address).is_ok();
        if let Some(listens) = self.listens.take().filter(|_| woken) {
            let _ = listens.join();
        }
        for stream in self.open.streams().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// How a conversation goes on.
type Next = ControlFlow<()>;

fn converse(inner: &Arc<Inner>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let Ok(read) = stream.try_clone() else { return };
    let mut read = BufReader::new(read);
    let mut stream = stream;
    while let Ok(Some(request)) = Request::read(&mut read) {
        let next = if request.path == PATH {
            let (number, fault) = logged(inner, &request);
            let next = answer(inner, &request, &mut stream, number, fault);
            inner.change(|state| of(&mut state.log, number).over = true);
            next
        } else {
            sent(Answer::page(404, "there is no such page").write(&mut stream, inner.now(), true))
        };
        if next.is_break() {
            return;
        }
    }
}

fn sent(written: std::io::Result<()>) -> Next {
    if written.is_ok() { Next::Continue(()) } else { Next::Break(()) }
}

/// The call's number, and what is to happen to it.
fn logged(inner: &Inner, request: &Request) -> (u64, Option<Fault>) {
    inner.change(|state| {
        let number = u64::try_from(state.log.len()).expect("a log fits") + 1;
        let command = request.get("command").unwrap_or_default();
        state.log.push(Call::new(number, &request.method, command, &request.parameters));
        (number, state.script.of_call(number, command))
    })
}

fn answer(inner: &Arc<Inner>, request: &Request, stream: &mut TcpStream, number: u64, fault: Option<Fault>) -> Next {
    let outcome = |outcome: Outcome| inner.change(|state| of(&mut state.log, number).outcome = outcome);
    match &fault {
        Some(Fault::Held(gate)) => gate.pass(),
        Some(Fault::CutBefore) => {
            outcome(Outcome::NotCarriedOut);
            return cut(stream);
        }
        Some(Fault::ResetBefore) => {
            outcome(Outcome::NotCarriedOut);
            return reset(stream);
        }
        Some(Fault::Instead(answer)) => {
            outcome(Outcome::NotCarriedOut);
            return sent(answer.write(stream, inner.now(), true));
        }
        _ => {}
    }
    let refusal = match &fault {
        Some(Fault::Refused(refusal)) => Some(refusal),
        _ => None,
    };
    let answer = carried_out(inner, request, number, refusal);
    match fault {
        Some(Fault::Takes(time)) => thread::sleep(time),
        Some(Fault::AnswerHeld(gate)) => gate.pass(),
        Some(Fault::CutAfter) => return cut(stream),
        Some(Fault::ResetAfter) => return reset(stream),
        Some(Fault::InsteadAfter(answer)) => return sent(answer.write(stream, inner.now(), true)),
        Some(Fault::CutInAnswer) => {
            let _ = answer.write(stream, inner.now(), false);
            return cut(stream);
        }
        _ => {}
    }
    let written = answer.write(stream, inner.now(), true);
    let at = written.is_ok().then(Timestamp::now);
    inner.change(|state| {
        let call = of(&mut state.log, number);
        (call.answered, call.answered_at) = (at.is_some(), at);
    });
    sent(written)
}

fn of(log: &mut [Call], number: u64) -> &mut Call {
    log.iter_mut().find(|call| call.number == number).expect("calls stay in the log")
}

/// Lets the caller in and does it, in one step as far as others see it.
fn carried_out(inner: &Arc<Inner>, request: &Request, number: u64, refusal: Option<&Refusal>) -> Answer {
    inner.change(|state| {
        let shape = match request.get("response") {
            Some(wish) if wish.eq_ignore_ascii_case("json") => Shape::Json { script: state.age == Age::Old },
            _ => Shape::Xml,
        };
        let house = House { enforce: state.enforce, now: state.now() };
        let command = door::let_in(&state.keys, house, request);
        let result = command.and_then(|command| match refusal {
            Some(refusal) => Err(refusal.clone()),
            None => command.carry_out(inner, state, request).map(|done| (command, done)),
        });
        let (outcome, answer) = match result {
            Ok((command, (value, job))) => (Outcome::Done(job), Answer::result(shape, command.name, &value)),
            Err(refusal) => {
                let known = request.get("command").and_then(crate::commands::find).map(|command| command.name);
                let answer = Answer::refusal(shape, known, &refusal);
                (Outcome::Refused { http: refusal.http, text: refusal.text }, answer)
            }
        };
        of(&mut state.log, number).outcome = outcome;
        answer
    })
}

fn cut(stream: &TcpStream) -> Next {
    let _ = stream.shutdown(Shutdown::Both);
    Next::Break(())
}

/// Closing with nothing to wait for is a reset; the stand-in's other descriptor must not keep it open.
fn reset(stream: &TcpStream) -> Next {
    let _ = set_socket_linger(stream, Some(Duration::ZERO));
    Next::Break(())
}
