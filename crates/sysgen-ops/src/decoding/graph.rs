//! Launches that are recorded once and started as one. What a recording may hold is CubeCL's to say
//! (`cubecl-runtime`, `client.rs`: `graph_prepare`, `start_capture`, `stop_capture`): launches, with memory that was there
//! before. A read inside it fails it everywhere; an upload fails it on Vulkan, where the tests would see it, and is
//! repeated with the recorded bytes on CUDA.

use std::thread::ThreadId;

use cubecl::future::block_on;

use super::StepInputs;

/// Runs before the recorded one: they choose kernels and take the memory that a recording must find.
const WARM_UPS: usize = 2;

/// A recorded run and its result, whose memory each replay fills anew.
#[derive(Debug)]
pub struct Graph<T> {
    recorded: cubecl::client::Graph,
    output: T,
    /// CubeCL has a stream for each thread, and only what is written on the recorded one is in order with a replay.
    thread: ThreadId,
}

impl<T: Send> Graph<T> {
    /// Runs `run` a few times, records it once more without running it, and keeps what it launched. `run` reads `inputs`,
    /// and launches kernels whose arguments are the same every time.
    ///
    /// CubeCL guards every page that a recording touches: while the graph lives, nothing on it is moved or given to others, be
    /// its tensors dropped or not. So the run's own memory is taken outside the pools, whose pages are as large as the
    /// largest allocation.
    ///
    /// # Errors
    /// What CubeCL says of a device that cannot record, or of a run that cannot be recorded. It can then be run as before.
    pub fn record(inputs: &StepInputs, mut run: impl FnMut() -> T + Send) -> Result<Self, String> {
        let client = inputs.client();
        client.memory_persistent_allocation((), move |()| {
            let recorded = client.graph_prepare().and_then(|()| {
                for _ in 0..WARM_UPS {
                    let result = run();
                    block_on(client.sync())?;
                    drop(result);
                }
                client.start_capture()?;
                let output = run();
                Ok((client.stop_capture()?, output))
            });
            match recorded {
                Ok((recorded, output)) => Ok(Graph {
                    recorded,
                    output,
                    thread: std::thread::current().id(),
                }),
                Err(error) => {
                    // Ends a recording that was prepared and never begun; any other is over, and refuses.
                    let _ = client.stop_capture();
                    Err(error.to_string())
                }
            }
        })
    }

    /// Starts what was recorded; its result, valid until the next replay.
    ///
    /// # Errors
    /// The device refuses, or the caller is not the thread that recorded.
    pub fn replay(&self) -> Result<&T, String> {
        if std::thread::current().id() != self.thread {
            return Err("a graph is replayed by the thread that recorded it alone".into());
        }
        // SAFETY: CubeCL guards the memory of all recorded launches while the graph lives, and what refreshes and reads it
        // comes from this thread, whose stream it was recorded on.
        let started = unsafe { self.recorded.replay() };
        started.map_err(|error| error.to_string())?;
        Ok(&self.output)
    }
}
