//! The error object: its codes are the specification's, those from 100 on are ours.
//!
//! Runtimes compare texts of a failed DEL with "not found" and "no such file or directory" and take a match for
//! success; no message of ours contains those words for anything that really failed.

use std::fmt;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::Version;

/// Why a call failed, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The configuration's `cniVersion` is not spoken here, or too old for the command.
    IncompatibleVersion = 1,
    /// A member of the configuration that is not supported; the message names key and value.
    UnsupportedField = 2,
    /// The container is unknown; the runtime need not clean up.
    UnknownContainer = 3,
    /// A missing or invalid `CNI_*` variable.
    Environment = 4,
    /// Reading or writing failed.
    Io = 5,
    /// Standard input is not a JSON object.
    Decode = 6,
    /// The configuration is not valid.
    InvalidConfig = 7,
    /// `CNI_NETNS` is the namespace that the plugin itself runs in.
    OwnNamespace = 8,
    /// The same call may succeed later.
    TryAgainLater = 11,
    /// ADD cannot be served now.
    NotAvailable = 50,
    /// ADD cannot be served now, and existing containers may be impaired.
    Impaired = 51,
    /// There is an attachment of this container and interface already.
    AlreadyAttached = 100,
    /// The kernel refused a request.
    Kernel = 101,
    /// A delegated plugin could not be run or made no sense.
    Delegate = 102,
    /// CHECK found something other than what ADD made.
    CheckFailed = 103,
}

/// A failed call, as it is printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniError {
    /// For programs; a plain number, as a delegated plugin's own code is passed on.
    pub code: u32,
    /// What was wrong, where, and what to do.
    pub message: String,
    /// More of it, if there is more.
    pub details: String,
}

impl CniError {
    /// An error of ours.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code: code as u32,
            message: message.into(),
            details: String::new(),
        }
    }

    /// The same with more detail.
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// A failed operation on a file.
    pub fn file(what: &str, path: &Path, error: &io::Error) -> Self {
        Self::new(
            Code::Io,
            format!("cannot {what} {}: {}", path.display(), reason(error)),
        )
    }

    /// The object that is printed. `version` is the request's, or the newest if the request was not readable.
    pub fn to_json(&self, version: Option<Version>) -> Value {
        let version = version.unwrap_or(Version::NEWEST);
        let mut object =
            json!({"cniVersion": version.as_str(), "code": self.code, "msg": self.message});
        if !self.details.is_empty() {
            object["details"] = Value::from(self.details.clone());
        }
        object
    }
}

/// An I/O error's text without the words that a runtime would take for success.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it does not exist".to_owned(),
        io::ErrorKind::StorageFull => "the file system is full".to_owned(),
        io::ErrorKind::QuotaExceeded => "the quota is used up".to_owned(),
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only".to_owned(),
        _ => error.to_string(),
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.message, self.code)?;
        if self.details.is_empty() {
            Ok(())
        } else {
            write!(f, ": {}", self.details)
        }
    }
}

impl std::error::Error for CniError {}
