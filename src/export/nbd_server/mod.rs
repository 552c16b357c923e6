//! nbd-server as the NBD server: the files it reads, and what it would make of them. It is Debian's and others' package
//! and comes in versions with very different manners ([`version`]).
//!
//! It is told about exports by files, one section each, which it reads at a signal (or, socket-activated, at each
//! connection). It never forgets a section it has once read, and never reads a known one again. So a section says nothing
//! that could change ([`sections`]): it leads to the volume's place in the folder of links, which the server looks at for
//! each new client. No link, no export, whatever the server remembers.
//!
//! One file that it cannot read blocks every new export, ends some versions, and keeps all from starting: hence
//! [`check`] before each signal.

pub mod backend;
pub mod check;
mod keyfile;
pub mod sections;
pub mod version;
pub mod way;
