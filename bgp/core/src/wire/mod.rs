//! Messages as they are on the wire (RFC 4271 section 4 and successors).
//!
//! [`header`] cuts the stream into frames; one module for each type of message reads and writes its body. Decoders are
//! total: any bytes give a value or a fault that says what to do and what to tell the peer.

pub mod attr;
pub mod attribute;
pub mod cache;
pub mod capability;
pub mod error;
pub mod header;
pub mod nlri;
pub mod notification;
pub mod open;
pub mod pack;
pub mod refresh;
mod special_purpose;
pub mod update;

#[cfg(test)]
mod tests;
