//! Who runs the tasks of a product: torch's own OpenMP team where torch is loaded, rayon's pool otherwise.
//!
//! Idle workers of either team spin for a while. Two teams on the same cores therefore cost each other their time, and
//! a sparse layer between dense ones has to use the team of the dense ones.

#![expect(
    unsafe_code,
    reason = "GOMP_parallel is a C function, found by its name in the process"
)]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::threads::is_forked;

/// How many threads to use, and whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Team {
    /// Threads at most; None for all of rayon's.
    pub threads: Option<usize>,
    /// Use the OpenMP runtime the process has loaded, if it has one.
    pub openmp: bool,
}

impl Team {
    /// `threads` of rayon's pool; None for all.
    #[must_use]
    pub fn rayon(threads: Option<usize>) -> Self {
        Self {
            threads,
            openmp: false,
        }
    }

    /// Threads that take part, at most.
    #[must_use]
    pub fn size(self) -> usize {
        if is_forked() {
            return 1; // a child of fork has none of its parent's threads, and either runtime would wait for them
        }
        match self.threads {
            Some(threads) => threads.max(1),
            None => rayon::current_num_threads(),
        }
    }

    /// Call `task` for 0..tasks, each once, in any order, on the calling thread and the team.
    pub(super) fn run(self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let (threads, next) = (self.size().min(tasks), AtomicUsize::new(0));
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= tasks {
                    break;
                }
                task(index);
            }
        };
        if threads <= 1 {
            work();
        } else if let Some(parallel) = self.openmp.then(gomp).flatten() {
            openmp(parallel, threads, &work);
        } else {
            rayon::in_place_scope(|scope| {
                for _ in 1..threads {
                    scope.spawn(|_| work());
                }
                work();
            });
        }
    }
}

/// `void GOMP_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags)`; LLVM's and Intel's runtimes
/// have it too.
type Parallel = unsafe extern "C" fn(unsafe extern "C" fn(*const Work), *const Work, u32, u32);

type Work<'a> = &'a (dyn Fn() + Sync);

fn openmp(parallel: Parallel, threads: usize, work: Work<'_>) {
    unsafe extern "C" fn body(work: *const Work) {
        // SAFETY: `openmp` passed a pointer to `work`, which outlives the parallel region.
        unsafe { (*work)() }
    }
    // SAFETY: the region calls `body` on each thread with the pointer given here and returns after the last; a closure
    // behind a shared reference that is Sync may run on several threads. The lifetime is dropped, not lengthened: nothing
    // keeps the pointer.
    unsafe { parallel(body, std::ptr::from_ref(&work).cast(), threads as u32, 0) }
}

/// The function of the OpenMP runtime that is loaded for all to see, as torch's is.
#[cfg(target_os = "linux")]
fn gomp() -> Option<Parallel> {
    use std::ffi::{c_char, c_void};
    unsafe extern "C" {
        fn dlsym(library: *mut c_void, symbol: *const c_char) -> *mut c_void;
    }
    static FOUND: OnceLock<Parallel> = OnceLock::new();
    if FOUND.get().is_none() {
        // SAFETY: a null library (RTLD_DEFAULT) searches what is loaded; the name ends with a zero.
        let symbol = unsafe { dlsym(std::ptr::null_mut(), c"GOMP_parallel".as_ptr()) };
        if !symbol.is_null() {
            // SAFETY: every runtime that exports this name gives it this signature.
            let _ = FOUND.set(unsafe { std::mem::transmute::<*mut c_void, Parallel>(symbol) });
        }
    }
    FOUND.get().copied()
}

#[cfg(not(target_os = "linux"))]
fn gomp() -> Option<Parallel> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn every_task_runs_once_whatever_the_team() {
        for threads in [None, Some(1), Some(2), Some(7)] {
            for openmp in [false, true] {
                let seen = Mutex::new(vec![0; 50]);
                Team { threads, openmp }.run(50, &|index| seen.lock().unwrap()[index] += 1);
                assert_eq!(seen.into_inner().unwrap(), [1; 50]);
            }
        }
        Team::rayon(None).run(0, &|_| panic!("no task to run"));
    }
}
