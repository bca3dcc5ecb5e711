//! The facts and the policies as the compiler knows them: valid by construction, in the order in which they sort.

mod address;
mod fact;
mod labels;
mod policy;
mod selector;

pub use address::{Family, Proto};
pub use fact::{
    IfName, LocalPod, NameTooLong, NamedPort, NamespaceFact, Phase, PodFact, PodKey, PodRef,
};
pub use labels::Labels;
pub use policy::{
    Direction, NamespaceMatch, PeerSelector, Peers, Policy, PolicyKey, PortAtom, Ports, Rule,
};
pub use selector::{Requirement, Selector, Values};
