//! A thread pool of a chosen size; results never depend on it.

/// Run `work` on a pool of `threads` threads; `None` uses rayon's global pool.
///
/// # Panics
/// If the operating system refuses to start threads.
pub fn with_threads<T: Send>(threads: Option<usize>, work: impl FnOnce() -> T + Send) -> T {
    match threads {
        None => work(),
        Some(count) => rayon::ThreadPoolBuilder::new()
            .num_threads(count.max(1))
            .build()
            .expect("the operating system refused to start a thread")
            .install(work),
    }
}

/// A pool of a chosen size that is kept between calls, for loops that must look around on the calling thread.
pub struct Threads(Option<rayon::ThreadPool>);

impl Threads {
    /// `count` threads; `None` for rayon's global pool.
    ///
    /// # Panics
    /// If the operating system refuses to start threads.
    #[must_use]
    pub fn new(count: Option<usize>) -> Self {
        Self(count.map(|count| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(count.max(1))
                .build()
                .expect("the operating system refused to start a thread")
        }))
    }

    /// Run `work` on the pool and wait for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.0 {
            None => work(),
            Some(pool) => pool.install(work),
        }
    }
}
