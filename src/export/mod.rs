//! Exports, to which NBD clients connect, and the proof that they are served.
//!
//! The engine sees either server through [`backend`]. Both servers read the folder of [`links`] at each new
//! connection: making a link publishes an export, removing the link revokes it. [`nbdkit`] (`file dir=…`) needs
//! nothing else; [`nbd_server`] must be told each name beforehand. attachd neither starts nor stops a server:
//! [`server`] watches its process, and [`probe`] makes handshakes with it.

pub mod backend;
pub mod clients;
pub mod flush;
pub mod links;
pub mod nbd_server;
pub mod nbdkit;
pub mod port;
pub mod probe;
pub mod server;
pub mod tls;
pub mod unit;
