//! nbd-server as the NBD server: the files it reads, and what it would make of them. It is Debian's and others' package
//! and comes in versions with very different manners ([`version`]).
//!
//! It is told about exports by files, one section each, which it reads at a signal (or, socket-activated, at each
//! connection). It never forgets a section it has once read, and never reads a known one again. So what decides whether
//! clients are served is not the section but the section's `authfile`, which it reads at every connection: empty,
//! nobody gets in. [`files`] keeps both.
//!
//! One file that it cannot read blocks every new export, ends some versions, and keeps all from starting: hence
//! [`check`] before each signal.

pub mod backend;
pub mod check;
pub mod files;
mod keyfile;
pub mod section;
pub mod version;
pub mod way;
