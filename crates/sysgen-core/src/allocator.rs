//! The allocator of the programs. A training step frees and asks for the same large buffers over and over; were they given
//! back to the system in between, it would have to clear their pages each time (a tenth of a step).

pub use mimalloc::MiMalloc;

/// `mi_option_purge_delay`, which the bindings do not name.
const PURGE_DELAY: i32 = 15;
/// Milliseconds for which freed memory is kept.
const KEPT: std::ffi::c_long = 2_000;

/// Keeps freed memory for two seconds instead of ten milliseconds. To be called first in a program whose global allocator
/// is [`MiMalloc`].
pub fn keep_freed_memory() {
    // SAFETY: sets a number that the allocator reads.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, KEPT) }
}
