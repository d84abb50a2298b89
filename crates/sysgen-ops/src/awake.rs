//! Threads that stay awake during a step. A step is a long row of short parallel loops; threads that fall asleep between
//! two of them are woken too late for the next.
//!
//! They are the threads of a pool of its own. The first thing each is given, and the only one that waits, is a loop that
//! looks for work while there is a step. Begun inside other work it could wait for what it keeps from going on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, OnceLock, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder, Yield};

/// How often a thread looks for a next step before it goes to sleep: some tenths of a millisecond.
const LOOKS: usize = 500;

static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
/// Steps that are being run.
static STEPS: AtomicUsize = AtomicUsize::new(0);
/// Where the threads sleep while there is none.
static BED: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());

/// A step from its beginning to its end, also when it panics.
struct Step;

impl Step {
    fn begin() -> Step {
        // Under the lock, so that no thread goes to bed between the count and the call.
        let _bed = BED.0.lock().unwrap_or_else(PoisonError::into_inner);
        if STEPS.fetch_add(1, Ordering::AcqRel) == 0 {
            BED.1.notify_all();
        }
        Step
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        STEPS.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Runs a step on threads that stay awake meanwhile; its parallel loops are theirs. For the CPU: what a GPU is given
/// depends on the thread that gives it.
pub fn awake<R: Send>(step: impl FnOnce() -> R + Send) -> R {
    match POOL.get_or_init(pool) {
        Some(pool) => {
            let _step = Step::begin();
            pool.install(step)
        }
        None => step(),
    }
}

/// `None` where there is a single thread, or the system does not give any.
fn pool() -> Option<ThreadPool> {
    let threads = rayon::current_num_threads();
    if threads == 1 {
        return None;
    }
    let name = |number| format!("step {number}");
    let builder = ThreadPoolBuilder::new().num_threads(threads);
    let pool = builder.thread_name(name).build().ok()?;
    // Nobody gets the pool before each thread is in its loop: one that found a step first would begin the loop inside it.
    let begun = Arc::new(Barrier::new(threads + 1));
    let all = begun.clone();
    pool.spawn_broadcast(move |_| {
        all.wait();
        look_for_work();
    });
    begun.wait();
    Some(pool)
}

fn look_for_work() {
    let mut looks = 0;
    loop {
        if rayon::yield_now() == Some(Yield::Executed) || STEPS.load(Ordering::Acquire) > 0 {
            looks = 0;
        }
        if looks < LOOKS {
            looks += 1;
            std::thread::yield_now();
        } else {
            let mut bed = BED.0.lock().unwrap_or_else(PoisonError::into_inner);
            while STEPS.load(Ordering::Acquire) == 0 {
                bed = BED.1.wait(bed).unwrap_or_else(PoisonError::into_inner);
            }
            looks = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    /// Short loops inside each other with something between them, as a step has.
    fn step(loops: u64) -> u64 {
        let inner = |i: u64| (0..16u64).into_par_iter().map(|j| i * j).sum::<u64>();
        let one = |i: u64| (0..8u64).into_par_iter().map(|j| inner(i + j)).sum::<u64>();
        (0..loops).map(one).sum()
    }

    #[test]
    fn steps_on_many_threads_at_once_and_inside_each_other_end() {
        let expected = step(20);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        assert_eq!(awake(|| awake(|| step(20))), expected);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_ends_its_step_alone() {
        let panic = std::panic::catch_unwind(|| awake(|| panic!("of the step")));
        assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"of the step"));
        assert_eq!(awake(|| step(3)), step(3));
    }
}
