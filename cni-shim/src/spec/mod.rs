//! The CNI specification as types: what comes in by environment and standard input, what goes out.

pub mod cidr;
pub mod config;
pub mod error;
pub mod field;
pub mod request;
pub mod result;
pub mod version;

pub use cidr::Cidr;
pub use config::NetConf;
pub use error::{CniError, Code};
pub use request::{Call, Command, Environment};
pub use result::CniResult;
pub use version::Version;
