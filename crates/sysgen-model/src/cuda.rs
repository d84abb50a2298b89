//! What a GPU needs on this machine, looked for before anything uses it: Burn panics, or hangs, where a part is missing.

/// One part of what a GPU needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// What it is.
    pub name: &'static str,
    /// What was found; or what is missing, and how to get it.
    pub found: Result<String, String>,
}

impl Need {
    fn new(name: &'static str, found: Result<String, String>) -> Need {
        Need { name, found }
    }
}

/// All of them in the order in which they build on each other; one only, in a program built without CUDA.
pub fn cuda_needs() -> Vec<Need> {
    parts::needs()
}

/// Name and memory of the GPU with this index, such as `NVIDIA H200, 139.8 GiB`.
pub(crate) fn gpu(index: usize) -> Option<String> {
    parts::gpus().ok()?.into_iter().nth(index)
}

/// Free memory of the GPU with this index, in bytes.
pub(crate) fn free_memory(index: usize) -> Option<usize> {
    parts::free_memory(index)
}

#[cfg(not(feature = "cuda"))]
mod parts {
    use super::Need;

    pub(super) fn free_memory(_index: usize) -> Option<usize> {
        None
    }

    pub(super) fn needs() -> Vec<Need> {
        let missing = "this program was built without CUDA; build it with `--features cuda`";
        vec![Need::new("CUDA build", Err(missing.into()))]
    }

    pub(super) fn gpus() -> Result<Vec<String>, String> {
        Ok(Vec::new())
    }
}

#[cfg(feature = "cuda")]
mod parts {
    use std::path::Path;

    use cubecl::cuda::install;
    use cudarc::{driver, nvrtc};

    use super::Need;

    /// Headers that kernels include (`cubecl-cpp`), from different packages of a CUDA installation.
    const HEADERS: [&str; 2] = ["cuda_fp16.h", "mma.h"];

    pub(super) fn needs() -> Vec<Need> {
        let names = gpus();
        let found = match &names {
            Ok(names) if names.is_empty() => Err("no NVIDIA GPU was found; `nvidia-smi` lists those \
                the driver sees, CUDA_VISIBLE_DEVICES hides them, and a container needs `--gpus all`"
                .into()),
            Ok(names) => Ok(names.join("; ")),
            Err(problem) => Err(problem.clone()),
        };
        vec![
            Need::new("NVIDIA driver", version()),
            Need::new("GPU", found),
            Need::new("NVRTC", compiler()),
            Need::new("CUDA headers", headers()),
        ]
    }

    fn version() -> Result<String, String> {
        // SAFETY: the call only tries to open each of the library's names.
        if !unsafe { driver::sys::is_culib_present() } {
            return Err(
                "the NVIDIA driver's library (libcuda.so.1) was not found; install the driver, or \
                start the container with the NVIDIA runtime (`--gpus all`)"
                    .into(),
            );
        }
        let mut version = 0;
        // SAFETY: the library is there, and the pointer is valid for the call, which needs no context.
        let answer = unsafe { driver::sys::cuDriverGetVersion(&raw mut version) };
        answer
            .result()
            .map_err(|error| format!("the NVIDIA driver does not answer ({error:?})"))?;
        Ok(format!(
            "for CUDA {}.{}",
            version / 1000,
            version % 1000 / 10
        ))
    }

    pub(super) fn free_memory(index: usize) -> Option<usize> {
        let context = driver::CudaContext::new(index).ok()?;
        let (free, _) = context.mem_get_info().ok()?;
        Some(free)
    }

    pub(super) fn gpus() -> Result<Vec<String>, String> {
        version()?;
        let list = || -> Result<Vec<String>, driver::DriverError> {
            driver::result::init()?;
            let describe = |ordinal| {
                let gpu = driver::result::device::get(ordinal)?;
                let name = driver::result::device::get_name(gpu)?;
                // SAFETY: the driver has just named this GPU.
                let bytes = unsafe { driver::result::device::total_mem(gpu) }?;
                Ok(format!(
                    "{name}, {:.1} GiB",
                    bytes as f64 / f64::from(1 << 30)
                ))
            };
            (0..driver::result::device::get_count()?)
                .map(describe)
                .collect()
        };
        match list() {
            Err(driver::DriverError(driver::sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(Vec::new()),
            other => other.map_err(|error| {
                format!(
                    "the NVIDIA driver cannot use its GPUs ({error:?}); does `nvidia-smi` work?"
                )
            }),
        }
    }

    fn compiler() -> Result<String, String> {
        // SAFETY: the call only tries to open each of the library's names.
        if !unsafe { nvrtc::sys::is_culib_present() } {
            return Err("NVRTC, which compiles the kernels at run time, was not found (libnvrtc.so.13 or libnvrtc.so.12); \
                install the CUDA 13 toolkit or its package cuda-nvrtc, and name its lib64 folder in LD_LIBRARY_PATH"
                .into());
        }
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the library is there, and both pointers are valid for the call.
        let answer = unsafe { nvrtc::sys::nvrtcVersion(&raw mut major, &raw mut minor) };
        answer
            .result()
            .map_err(|error| format!("NVRTC does not answer ({error:?})"))?;
        Ok(format!("{major}.{minor}"))
    }

    fn headers() -> Result<String, String> {
        let how = "install the CUDA toolkit or its package cuda-cudart-dev and cuda-crt, and name its folder in CUDA_PATH";
        let Some(root) = install::cuda_path() else {
            return Err(format!(
                "the CUDA headers, which kernels include, were not found in CUDA_PATH, \
                /usr/local/cuda, /opt/cuda or /usr; {how}"
            ));
        };
        let include = root.join("include");
        let missing = |header: &&&str| !Path::new(&include).join(header).exists();
        match HEADERS.iter().find(missing) {
            Some(header) => Err(format!(
                "{} has no {header}, which kernels include; {how}",
                include.display()
            )),
            None => Ok(include.display().to_string()),
        }
    }
}
