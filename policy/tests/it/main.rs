//! The compiler against an oracle written from the specification, an interpreter of its plans, and the real `nft`.

mod bounds;
mod chains;
mod equivalence;
mod incremental;
mod interpreter;
mod kernel;
mod long_lists;
mod nft;
mod oracle;
mod rows;
mod strategy;
mod world;
