//! What an NBD client connects to: exports, and the proof that they are served.
//!
//! [`backend`] is what the engine sees of either server. [`nbdkit`] (`file dir=…`) looks an export's name up in its folder
//! at each connection: making a link publishes, removing it revokes, nothing needs a signal. [`nbd_server`] takes a little
//! more. attachd neither starts nor stops a server; [`server`] only watches it live, and [`probe`] asks it.

pub mod backend;
pub mod clients;
pub mod nbd_server;
pub mod nbdkit;
pub mod probe;
pub mod server;
pub mod tls;
