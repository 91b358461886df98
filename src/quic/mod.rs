//! What relay and client both set up in quinn, beyond its own settings.

pub(crate) mod acks;
pub(crate) mod congestion;
pub(crate) mod moves;
pub(crate) mod mtu;
pub(crate) mod runtime;
#[cfg(test)]
mod simulation;
pub(crate) mod udp;
