//! The types of the control API: what the daemon says about itself, as plain data.
//!
//! The server fills them, the command line and other programs read them; neither knows the other. Fields are added,
//! never renamed: a newer daemon is understood by an older command.

pub mod routes;
pub mod status;
pub mod why;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use routes::{PathView, RoutePage, RouteQuestion, RouteView};
pub use status::{
    BgpView, FaultCountView, FaultView, Finding, Health, NotEnforcedView, PeerView, PolicyView,
    ProblemView, ReadyView, RouteTotals, SourceView, StaleFamilyView, StatusView,
    UnknownSourceView, UnusedFamilyView,
};
pub use why::{DirectionView, EndView, WhyQuestion, WhyView};

/// The file name of the socket in the run directory.
pub const SOCKET: &str = "selvage.sock";

/// A condition of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConditionView {
    /// `BGPPeer` and so on.
    pub kind: String,
    /// `namespace/name`, or `name`.
    pub object: String,
    /// `Accepted`, `Conflict` and so on.
    #[serde(rename = "type")]
    pub name: String,
    /// Whether it holds.
    pub status: bool,
    /// For people; may be empty.
    pub message: String,
}

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WaitFor {
    /// Everything that the source held at the call is in the kernel.
    Synced,
    /// The node can serve pods.
    Ready,
    /// Every configured neighbour is Established and has sent its End-of-RIB.
    Peers,
}

/// How a wait ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WaitView {
    /// Whether it came true in time.
    pub done: bool,
    /// What is still missing, for people.
    pub missing: Vec<String>,
}

/// Which neighbours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerQuestion {
    /// This one only.
    pub address: Option<IpAddr>,
}

/// The daemon will not or cannot answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// Why, for people.
    pub error: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Refusal {
    /// A refusal without a hint.
    pub fn new(error: impl std::fmt::Display) -> Self {
        Refusal {
            error: error.to_string(),
            hint: None,
        }
    }

    /// A refusal and what to do.
    pub fn hinted(error: impl std::fmt::Display, hint: impl std::fmt::Display) -> Self {
        Refusal {
            error: error.to_string(),
            hint: Some(hint.to_string()),
        }
    }
}
