//! Messages as they are on the wire (RFC 4271 section 4 and successors).

pub mod attr;
pub mod attribute;
pub mod header;
pub mod nlri;
pub mod notification;
pub mod pack;
pub mod update;
