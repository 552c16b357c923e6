//! What an NBD client connects to: exports, and the proof that they are served.
//!
//! [`backend`] is what the engine sees of either server. Both serve what is in the folder of [`links`] at each connection:
//! making a link publishes, removing it revokes. [`nbdkit`] (`file dir=…`) needs nothing else; [`nbd_server`] has to be
//! told of each name beforehand. attachd neither starts nor stops a server; [`server`] only watches it live, and [`probe`]
//! asks it.

pub mod backend;
pub mod clients;
pub mod links;
pub mod nbd_server;
pub mod nbdkit;
pub mod port;
pub mod probe;
pub mod server;
pub mod tls;
pub mod unit;
