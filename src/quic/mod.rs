//! What relay and client both set up in quinn, beyond its own settings.

pub(crate) mod acks;
pub(crate) mod mtu;
pub(crate) mod runtime;
pub(crate) mod udp;
