//! A stand-in for CloudStack, for the tests, the demo and by hand.
//!
//! It speaks the API as the real one does, as far as attachd needs it: signed requests, jobs, refusals in the call or in
//! the job's result. It knows nothing of attachd and takes no code from it: each rule is written a second time here, from
//! CloudStack's sources, on purpose. What it can do that the real one cannot:
//!
//! * **a script of faults** ([`Fault`], [`JobFault`]): calls that are cut before or after they were carried out, answers of
//!   somebody in between, jobs that are late, cancelled, forgotten. Nothing is random, and what waits, waits at a [`Gate`].
//! * **a log** ([`Cloud::calls`]) of each call with its outcome: the witness for "no call twice, none in vain".
//! * **disks that really come** ([`Plug`]): a loop device in the lab, QMP for a guest.
//!
//! ```text
//!   TCP ─▶ request ─▶ door (keys, signature, method) ─▶ commands ─▶ jobs ─▶ Plug
//!             │                                            │         │
//!           script                                       world ◀─────┘        log
//! ```

mod answer;
mod cloud;
mod commands;
mod door;
mod jobs;
mod log;
mod plug;
mod request;
mod script;
mod serve;
mod shapes;
mod sign;
mod world;

pub use answer::{Answer, Refusal};
pub use cloud::{Cloud, Setup};
pub use door::Key;
pub use jobs::Job;
pub use log::{Call, Outcome};
pub use plug::{Bus, NoPlug, Plug, Unit};
pub use script::{Fault, Gate, JobFault};
pub use world::{Age, Kind, Vm, Volume};
