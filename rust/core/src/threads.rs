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
