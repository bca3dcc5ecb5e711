//! What the benches and the soak share: a load generator of BGP speakers, and a day of a cluster in fast motion.

pub mod fleet;
#[path = "../soak/mod.rs"]
pub mod soak;
