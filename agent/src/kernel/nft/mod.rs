//! Table `inet selvage` in the kernel: the thread that carries out what the compiler planned.
//!
//! The only mirror is the compiler's. This side knows which generation the kernel has and the
//! kinds of its sets, takes a [`Delta`](selvage_policy::plan::Delta) when it is idle, and asks for the whole plan when it is not
//! sure: at a failure, at a foreign change, after lost notifications. A whole plan is compared
//! with what the kernel has, and the difference is written, in one transaction. Always holds:
//! there is no moment at which the kernel has half of a plan.

mod compare;
mod table;
mod thread;
pub mod translate;

pub use table::{Loaded, Misapplied, NftTable};
pub use thread::{NftEvent, NftWork, Want, spawn};
