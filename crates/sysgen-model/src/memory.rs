//! A device without enough memory. Burn tells of it where a result is read, long after the allocation that failed, by a
//! panic with a page of text; here that becomes one error that says what to change.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind, set_hook, take_hook};
use std::sync::{Mutex, PoisonError};

use anyhow::{Error, Result, anyhow};

/// What the program was doing, and the GPU it uses.
static STATE: Mutex<State> = Mutex::new(State {
    doing: "starting",
    gpu: None,
    failure: None,
});

struct State {
    doing: &'static str,
    gpu: Option<String>,
    /// Of a panic, on whatever thread.
    failure: Option<OutOfMemory>,
}

/// An allocation that a device refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// Its size, where the message tells.
    pub bytes: Option<u64>,
}

/// How CubeCL and the CUDA driver say it, with the words before the size in bytes
/// (`cubecl-runtime`: `IoError`, `LaunchError`; `cubecl-cuda`: `storage/gpu.rs`).
const WITH_SIZE: [&str; 3] = [
    "out of device memory allocating ",
    "can't allocate buffer of size: ",
    "Can't allocate ",
];
const WITHOUT_SIZE: [&str; 2] = [
    "An out-of-memory error happened during launch",
    "CUDA_ERROR_OUT_OF_MEMORY",
];

/// The failed allocation that a panic or an error tells of, if it tells of one.
pub fn out_of_memory(message: &str) -> Option<OutOfMemory> {
    for words in WITH_SIZE {
        let Some((_, rest)) = message.split_once(words) else {
            continue;
        };
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
        if let Some(bytes) = digits.and_then(|digits| digits.parse().ok()) {
            return Some(OutOfMemory { bytes: Some(bytes) });
        }
    }
    let said = WITHOUT_SIZE.iter().any(|words| message.contains(words));
    said.then_some(OutOfMemory { bytes: None })
}

/// Notes what the program does from now on, for the message.
pub fn doing(what: &'static str) {
    state(|state| state.doing = what);
}

/// Notes the GPU in use, for the message.
pub(crate) fn using(gpu: String) {
    state(|state| state.gpu = Some(gpu));
}

/// Runs a program to its end. Where its device runs out of memory, the error says while doing what, how much was needed,
/// and `advice`. Every other panic goes on as it was.
///
/// # Errors
/// Those of `run`, and a device without enough memory.
pub fn catch_out_of_memory<T>(advice: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let usual = take_hook();
    set_hook(Box::new(move |panic| {
        match text(panic.payload()).and_then(out_of_memory) {
            Some(failure) => state(|state| state.failure = Some(failure)),
            None => usual(panic),
        }
    }));
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => match out_of_memory(&format!("{error:#}")) {
            Some(failure) => Err(explained(failure, advice)),
            None => Err(error),
        },
        Err(panic) => {
            let told = text(&*panic).and_then(out_of_memory);
            // A device's own thread may have told more than the one that waited for it.
            match state(|state| state.failure.take()).or(told) {
                Some(failure) => Err(explained(failure, advice)),
                None => resume_unwind(panic),
            }
        }
    }
}

fn explained(failure: OutOfMemory, advice: &str) -> Error {
    let size = failure.bytes.map_or("more memory was".into(), |bytes| {
        format!("{:.2} GiB more were", bytes as f64 / f64::from(1 << 30))
    });
    state(|state| {
        let gpu = state.gpu.as_deref().unwrap_or("the device");
        anyhow!(
            "out of device memory while {}: {size} needed than {gpu} has free; {advice}",
            state.doing
        )
    })
}

fn text(payload: &(dyn Any + Send)) -> Option<&str> {
    let owned = payload.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| payload.downcast_ref::<&str>().copied())
}

fn state<T>(change: impl FnOnce(&mut State) -> T) -> T {
    // A panic must still be explained when another one left the lock poisoned.
    change(&mut STATE.lock().unwrap_or_else(PoisonError::into_inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: &str = "Error while reading data: use `try_into_scalar` instead to catch the error at runtime: \
        An error happened during execution\nCaused by:\n  An IO error happened\nCaused by:\n  \
        out of device memory allocating 2147483648 bytes\n   0: cubecl_cuda::compute::storage";

    #[test]
    fn the_size_is_found_in_what_cubecl_says() {
        for (message, bytes) in [
            (READ, Some(2_147_483_648)),
            (
                "can't allocate buffer of size: 1099511627776\n",
                Some(1 << 40),
            ),
            ("Can't allocate 512 bytes: every page size", Some(512)),
            (
                "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
                None,
            ),
            (
                "An out-of-memory error happened during launch\nCaused by:\n  x",
                None,
            ),
        ] {
            assert_eq!(
                out_of_memory(message),
                Some(OutOfMemory { bytes }),
                "{message}"
            );
        }
        for message in ["index out of bounds", "Can't allocate a name", ""] {
            assert_eq!(out_of_memory(message), None, "{message}");
        }
    }

    #[test]
    fn a_panic_becomes_an_error_with_advice_and_others_stay_panics() {
        doing("training");
        let result = catch_out_of_memory("lower the batch size", || -> Result<()> {
            panic!("{READ}");
        });
        let message = result.map_or_else(|error| error.to_string(), |()| String::new());
        assert_eq!(
            message,
            "out of device memory while training: 2.00 GiB more were needed than the device has free; lower the batch size"
        );
        let error = catch_out_of_memory::<()>("x", || Err(anyhow!("no such file")));
        assert!(error.is_err_and(|error| error.to_string() == "no such file"));
        let other = catch_unwind(|| catch_out_of_memory::<()>("x", || panic!("a bug")));
        assert!(other.is_err_and(|panic| text(&*panic) == Some("a bug")));
    }
}
