//! Our tables in the kernel: one thread writes them, watches all of them, and heals them.
//!
//! ```text
//!   TablePlan ─► compare (what the kernel has) ─► reconcile: the difference   every table
//!      ▲  policy: a Plan from the compiler, then deltas   `inet selvage`       asked for again when damaged
//!      ├─ kept: a WholeTable of which the thread has all  `inet selvage-nat`   healed by the thread alone
//!      └─ others': no plan, only watched                  `inet selvage-cni`   healed by its writer's code
//! ```
//! The policy's only mirror is the compiler's. This side knows which generation the kernel has and the
//! kinds of its sets, takes a [`Delta`](selvage_policy::plan::Delta) when it is idle, and asks for the whole plan when it is not
//! sure: at a failure, at a foreign change, after lost notifications. A table whose plan does not come in time is closed
//! meanwhile. A whole plan is compared with what the kernel has, and the difference is written: what is new in one
//! transaction, what leads there in a second.
//! Always holds: there is no moment at which the kernel has half of a plan.

mod compare;
mod kept;
pub mod plan;
mod reconcile;
mod table;
mod thread;
pub mod translate;
mod witness;

pub use reconcile::Loaded;
pub use table::{Misapplied, NftTable};
pub use thread::{Dropper, NftEvent, NftWork, Settings, Want, spawn};
pub use witness::Shared;
