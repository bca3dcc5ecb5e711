//! What has been done so far, as the list of its inverses.
//!
//! Nothing is undone by a destructor: a call that dies leaves everything, and DEL, which needs none of this,
//! clears it away. On an error the stack is run from the top.

use crate::spec::CniError;

type Inverse<'a> = Box<dyn FnOnce() -> Result<(), CniError> + 'a>;

/// The inverses of the steps that were done, the last one on top.
#[derive(Default)]
pub struct Undo<'a> {
    steps: Vec<(&'static str, Inverse<'a>)>,
}

impl<'a> Undo<'a> {
    /// Notes how a step is undone. Called before the step where the inverse is harmless without it, so that a step
    /// that fails half way is undone as well.
    pub fn push(
        &mut self,
        what: &'static str,
        inverse: impl FnOnce() -> Result<(), CniError> + 'a,
    ) {
        self.steps.push((what, Box::new(inverse)));
    }

    /// Everything stays.
    pub fn keep(self) {}

    /// Undoes all, in reverse order, past failures; `error` gets a note on each of those.
    pub fn run(mut self, mut error: CniError) -> CniError {
        while let Some((what, inverse)) = self.steps.pop() {
            if let Err(failed) = inverse() {
                if !error.details.is_empty() {
                    error.details.push_str("; ");
                }
                error
                    .details
                    .push_str(&format!("undoing {what}: {}", failed.message));
            }
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::spec::Code;

    #[test]
    fn from_the_top_and_past_failures() {
        let order = RefCell::new(Vec::new());
        let mut undo = Undo::default();
        for (name, works) in [("a", true), ("b", false), ("c", true)] {
            let order = &order;
            undo.push(name, move || {
                order.borrow_mut().push(name);
                if works {
                    Ok(())
                } else {
                    Err(CniError::new(Code::Io, "stuck"))
                }
            });
        }
        let error = undo.run(CniError::new(Code::Kernel, "first"));
        assert_eq!(*order.borrow(), ["c", "b", "a"]);
        assert_eq!(
            (error.message.as_str(), error.details.as_str()),
            ("first", "undoing b: stuck")
        );
    }
}
