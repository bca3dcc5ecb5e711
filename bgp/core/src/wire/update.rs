//! UPDATE (RFC 4271 section 4.3, RFC 4760, RFC 7606).

pub use super::pack::{EncodeOptions, Unencodable, write_end_of_rib, write_reach, write_unreach};
