//! Row blocks worked on in parallel, the calling thread asking now and then whether to stop.

use rayon::prelude::*;

use crate::threads::Threads;
use crate::{Error, Result};

/// Rows of a block. Fixed, so that the bits of a result do not depend on the number of threads; 96 rows multiply a matrix of
/// 1536 columns 12 % faster than 64 do, as the matrix is packed less often.
pub(super) const ROWS: usize = 96;

/// How a solver runs: on which threads, and who may stop it.
pub struct Workers<'a> {
    threads: Threads,
    stop: &'a (dyn Fn() -> bool + Sync),
}

impl<'a> Workers<'a> {
    /// `threads` of `None` uses rayon's global pool; results do not depend on the number.
    ///
    /// `stop` is asked on the calling thread between steps; `true` ends the run with [`Error::Interrupted`].
    ///
    /// # Errors
    /// [`Error::Shape`] if `threads` is 0, above 1024, or more than the operating system starts.
    pub fn new(threads: Option<usize>, stop: &'a (dyn Fn() -> bool + Sync)) -> Result<Self> {
        let threads = Threads::new(threads)?;
        Ok(Self { threads, stop })
    }

    /// Apply `step` to every block.
    pub(super) fn each<B: Send>(&self, blocks: &mut [B], step: impl Fn(&mut B) + Sync) {
        self.threads.run(|| blocks.par_iter_mut().for_each(&step));
    }

    /// Apply `step` to every block, up to an error.
    pub(super) fn try_each<B: Send>(
        &self,
        blocks: &mut [B],
        step: impl Fn(&mut B) -> Result<()> + Sync,
    ) -> Result<()> {
        self.threads
            .run(|| blocks.par_iter_mut().try_for_each(&step))
    }

    /// [`Error::Interrupted`] if the caller wants to stop.
    pub(super) fn ask(&self) -> Result<()> {
        if (self.stop)() {
            return Err(Error::Interrupted);
        }
        Ok(())
    }
}
