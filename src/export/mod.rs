//! What an NBD client connects to: links in the folder nbdkit serves, and the proof that they are served.
//!
//! nbdkit (`file dir=…`) looks an export's name up in its folder at each connection: making a link publishes, removing it
//! revokes, nothing needs a signal. attachd neither starts nor stops the server; [`server`] only watches it live.

pub mod clients;
pub mod folder;
pub mod nbd_server;
pub mod probe;
pub mod server;
pub mod tls;
