//! Limits of what small files can ask for: placeholders, loops and expressions repeat values, and a few lines can ask for any amount of
//! memory or time.

use std::cell::Cell;

/// An amount that can be used up. It is checked before memory is taken or work is begun.
#[derive(Debug)]
pub struct Budget {
    left: Cell<usize>,
    limit: usize,
    /// What has the limit, for errors: `the texts of placeholders`.
    what: &'static str,
    unit: &'static str,
}

impl Budget {
    /// A budget of bytes. `what` has the limit.
    pub(crate) fn bytes(limit: usize, what: &'static str) -> Self {
        Self { left: Cell::new(limit), limit, what, unit: "bytes" }
    }

    /// A budget of units of work. `what` has the limit.
    pub(crate) fn work(limit: usize, what: &'static str) -> Self {
        Self { left: Cell::new(limit), limit, what, unit: "units of work" }
    }

    /// The same limit, of which `used` is used up.
    pub(crate) fn with_used(self, used: usize) -> Self {
        self.left.set(self.limit.saturating_sub(used));
        self
    }

    /// Uses up an amount.
    ///
    /// # Errors
    /// There is not as much left. Then nothing is used up.
    pub(crate) fn take(&self, amount: usize) -> Result<(), String> {
        let left = self.left.get().checked_sub(amount);
        self.left.set(left.ok_or_else(|| format!("{} have more than {} {}", self.what, self.limit, self.unit))?);
        Ok(())
    }
}
