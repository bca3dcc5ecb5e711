//! The facts and the policies as the compiler knows them: valid by construction, in the order in which they sort.

mod address;
mod fact;
mod labels;
mod pod_ips;
mod policy;
mod selector;
mod shared;
mod uid;

pub use address::{Family, Proto};
pub use fact::{
    IfName, LocalPod, NameTooLong, NamedPort, NamespaceFact, Phase, PodFact, PodKey, PodRef,
};
pub use labels::Labels;
pub use pod_ips::PodIps;
pub use policy::{
    Direction, NamespaceMatch, PeerSelector, Peers, Policy, PolicyKey, PortAtom, Ports, Rule,
};
pub use selector::{Requirement, Selector, Values};
pub use shared::Shared;
pub use uid::Uid;
