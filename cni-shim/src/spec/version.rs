//! The versions of the specification that are spoken, and what each of them knows.

use serde_json::{Value, json};

use super::error::{CniError, Code};

/// A version of the specification; later ones compare as greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.0: lists of addresses and interfaces, chaining.
    V030,
    /// 0.3.1.
    V031,
    /// 0.4.0: CHECK, and prevResult on DEL.
    V040,
    /// 1.0.0: addresses without `version`.
    V100,
    /// 1.1.0: GC, STATUS, MTU of interfaces and more of routes.
    V110,
}

impl Version {
    /// All, oldest first.
    pub const ALL: [Self; 5] = [Self::V030, Self::V031, Self::V040, Self::V100, Self::V110];

    /// The newest that is spoken.
    pub const NEWEST: Self = Self::V110;

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V030 => "0.3.0",
            Self::V031 => "0.3.1",
            Self::V040 => "0.4.0",
            Self::V100 => "1.0.0",
            Self::V110 => "1.1.0",
        }
    }

    /// Exactly one of the spoken versions, or code 1. A missing version means 0.1.0, which is not one.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        Self::ALL
            .into_iter()
            .find(|v| v.as_str() == text)
            .ok_or_else(|| {
                let spoken = Self::ALL.map(Self::as_str).join(", ");
                CniError::new(
                    Code::IncompatibleVersion,
                    format!("cniVersion {text:?} is not supported"),
                )
                .with_details(format!("supported: {spoken}"))
            })
    }

    /// Whether each address says which family it is of.
    pub fn tags_family(self) -> bool {
        self < Self::V100
    }

    /// Whether interfaces have an MTU, and routes more than a destination and a gateway.
    pub fn has_link_details(self) -> bool {
        self >= Self::V110
    }
}

/// The answer to VERSION. `asked` is the `cniVersion` of standard input: it is echoed if it is spoken, as runtimes
/// drop a network whose answer names a version outside of its own list.
pub fn answer(asked: Option<&str>) -> Value {
    let version = asked
        .and_then(|text| Version::parse(text).ok())
        .unwrap_or(Version::NEWEST);
    json!({"cniVersion": version.as_str(), "supportedVersions": Version::ALL.map(Version::as_str)})
}
