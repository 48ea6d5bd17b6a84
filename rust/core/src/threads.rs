//! A thread pool of a chosen size; results never depend on it.

use std::sync::{Mutex, OnceLock, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{Error, Result};

const MOST_THREADS: usize = 1024;

/// Note the process that loads the library, so that a child of fork knows itself as one.
pub fn remember_process() {
    HOME.get_or_init(std::process::id);
}

/// Whether this process is a child of fork, which has none of its parent's threads; rayon's global pool would wait for
/// them for ever.
pub(crate) fn is_forked() -> bool {
    *HOME.get_or_init(std::process::id) != std::process::id()
}

static HOME: OnceLock<u32> = OnceLock::new();

/// The pool that stands in for rayon's global one in a child of fork; made at its first use, and never ended.
fn pool_of_child() -> Option<&'static ThreadPool> {
    static CHILD: Mutex<Option<(u32, &'static ThreadPool)>> = Mutex::new(None);
    if !is_forked() {
        return None;
    }
    let (mut kept, own) = (
        CHILD.lock().unwrap_or_else(PoisonError::into_inner),
        std::process::id(),
    );
    if kept.is_none_or(|(process, _)| process != own) {
        let pool = ThreadPoolBuilder::new()
            .build()
            .expect("the operating system refused to start a thread");
        *kept = Some((own, Box::leak(Box::new(pool))));
    }
    kept.map(|(_, pool)| pool)
}

/// Run `work` on a pool of `threads` threads; `None` uses rayon's global pool, or in a child of fork one like it.
///
/// # Panics
/// If the operating system refuses to start threads.
pub fn with_threads<T: Send>(threads: Option<usize>, work: impl FnOnce() -> T + Send) -> T {
    match threads {
        None => match pool_of_child() {
            None => work(),
            Some(pool) => pool.install(work),
        },
        Some(count) => ThreadPoolBuilder::new()
            .num_threads(count.max(1))
            .build()
            .expect("the operating system refused to start a thread")
            .install(work),
    }
}

/// A pool of a chosen size that is kept between calls, for loops that must look around on the calling thread.
pub struct Threads(Option<ThreadPool>);

impl Threads {
    /// Rayon's global pool.
    pub const ALL: Self = Self(None);

    /// `count` threads; `None` for rayon's global pool.
    ///
    /// # Errors
    /// [`Error::Shape`] if `count` is 0, above 1024, or more than the operating system starts.
    pub fn new(count: Option<usize>) -> Result<Self> {
        count.map(start).transpose().map(Self)
    }

    /// Run `work` on the pool and wait for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.0 {
            // On a pool, so that loops inside need not enter it one by one.
            None => match pool_of_child() {
                None => rayon::scope(|_| work()),
                Some(pool) => pool.install(work),
            },
            Some(pool) => pool.install(work),
        }
    }
}

fn start(count: usize) -> Result<ThreadPool> {
    let refused = || Error::Shape {
        name: "threads",
        got: count,
        wanted: format!("between 1 and {MOST_THREADS}, and within the limits of the system"),
    };
    if !(1..=MOST_THREADS).contains(&count) {
        return Err(refused());
    }
    ThreadPoolBuilder::new()
        .num_threads(count)
        .build()
        .map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_has_the_chosen_size_and_zero_is_refused() {
        let threads = Threads::new(Some(3)).map(|threads| threads.run(rayon::current_num_threads));
        assert_eq!(threads, Ok(3));
        let refused = Threads::new(Some(0)).map(|_| ()).unwrap_err();
        assert!(
            refused
                .to_string()
                .starts_with("threads: 0 is not between 1 and 1024")
        );
    }
}
