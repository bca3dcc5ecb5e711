//! Points at which a test lets a call fail or die; nothing at all in the program that is shipped.
//!
//! A death is an unwinding panic: file descriptors close and locks go, as the kernel sees to it after `kill -9`,
//! and nothing else is put back, since no destructor of ours undoes anything.

/// One step is done; the next may not be reached.
#[cfg(not(test))]
#[inline]
pub(crate) fn point() -> Result<(), crate::spec::CniError> {
    Ok(())
}

#[cfg(test)]
pub(crate) use armed::point;

/// Setting the points off.
#[cfg(test)]
pub(crate) mod armed {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    use crate::spec::{CniError, Code};

    /// What happens at the chosen point.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Fault {
        /// The step reports an error.
        Fail,
        /// The process dies.
        Kill,
    }

    struct Killed;

    thread_local! {
        static ARMED: Cell<Option<(Fault, u32)>> = const { Cell::new(None) };
    }

    pub(crate) fn point() -> Result<(), CniError> {
        match ARMED.take() {
            None => Ok(()),
            Some((fault, 0)) => match fault {
                Fault::Fail => Err(CniError::new(Code::Io, "injected")),
                Fault::Kill => resume_unwind(Box::new(Killed)),
            },
            Some((fault, left)) => {
                ARMED.set(Some((fault, left - 1)));
                Ok(())
            }
        }
    }

    /// Runs `call` with a fault at its `step`-th point. `None`: it was killed. The flag says whether it came that far.
    pub(crate) fn with_fault<T>(
        fault: Fault,
        step: u32,
        call: impl FnOnce() -> T,
    ) -> (Option<T>, bool) {
        ARMED.set(Some((fault, step)));
        let result = catch_unwind(AssertUnwindSafe(call));
        let reached = ARMED.take().is_none();
        match result {
            Ok(value) => (Some(value), reached),
            Err(panic) if panic.is::<Killed>() => (None, true),
            Err(panic) => resume_unwind(panic),
        }
    }
}
