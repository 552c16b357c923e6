//! nbd-server as the NBD server: the files that it reads, and a check of them. Distributions package several versions
//! of it, which behave very differently ([`version`]).
//!
//! nbd-server learns of exports from files with one section each. It reads the files at a signal or, in socket mode,
//! at each connection. It never forgets a section that it has read and never reads a known section again. So a
//! section contains nothing that could change ([`sections`]): it leads to the volume's path in the folder of links,
//! which the server opens for each new client. Without a link there is no export, whatever the server remembers.
//!
//! One unreadable file blocks every new export, ends some versions, and keeps every version from starting. So
//! [`check`] runs before each signal.

pub mod backend;
pub mod check;
mod keyfile;
pub mod mode;
pub mod sections;
pub mod version;
