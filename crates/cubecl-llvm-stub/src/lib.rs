//! Stands in for the crate `cubecl-llvm` under `[patch.crates-io]`.
//!
//! `cubecl-cuda` has two kernel compilers: CUDA C++ through NVRTC, and LLVM. It always links
//! both, and the real `cubecl-llvm` downloads a prebuilt LLVM from GitHub while it is built,
//! which fails wherever GitHub is out of reach. We choose NVRTC (`cubecl` feature `cuda-cpp`),
//! so nothing here is ever called: these are the items `cubecl-cuda` names, and each one that
//! could run answers with an error that says what happened.

use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_environment::backtrace::BackTrace;
use cubecl_runtime::compiler::{CompilationError, Compiler};
use cubecl_runtime::kernel::BufferIOAttr;

const ABSENT: &str = "this build has no LLVM: CUDA kernels are compiled by NVRTC \
                      (the `cubecl` feature `cuda-cpp` must be on)";

/// What `cubecl-cuda` imports from `cubecl_llvm::nvptx`.
pub mod nvptx {
    /// PTX version numbers.
    pub mod ptx_version {
        /// A PTX ISA version. NVRTC writes its own, so none is ever chosen here.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct PtxVersion(u32);

        impl PtxVersion {
            /// Always `None`: only the LLVM compiler asks for a version.
            pub fn for_driver(_driver: i32) -> Option<Self> {
                None
            }
        }

        impl core::fmt::Display for PtxVersion {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "ptx{}", self.0)
            }
        }
    }
}

/// What `cubecl-cuda` imports from `cubecl_llvm::shared`.
pub mod shared {
    /// Features of a device that LLVM can lower.
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;
        use cubecl_core::ir::nvidia::SmArch;

        /// The device family a kernel is compiled for.
        #[derive(Clone, Copy, Debug)]
        pub enum GpuTarget {
            /// An NVIDIA device.
            Nvptx {
                /// Its architecture.
                arch: SmArch,
            },
        }

        /// Called only when LLVM is the default compiler, which this build does not have.
        pub fn restrict_features(_properties: &mut DeviceProperties, _target: GpuTarget) {
            panic!("{}", super::super::ABSENT);
        }
    }
}

/// Which code an LLVM compiler would produce.
#[derive(Clone, Copy, Debug, Default)]
pub enum LlvmTarget {
    /// PTX for NVIDIA devices.
    #[default]
    Nvptx,
}

/// The absent compiler.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    /// Which code it would produce.
    pub target: LlvmTarget,
}

/// Options `cubecl-cuda` fills in before compiling.
#[derive(Debug, Default, Clone)]
pub struct PlironOptions {
    /// AMD architecture; never set by `cubecl-cuda`.
    pub arch: Option<()>,
    /// NVIDIA architecture.
    pub sm_arch: Option<SmArch>,
    /// PTX version to emit.
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    /// Whether scalars travel in the kernel parameter block.
    pub grid_constants: bool,
    /// Whether compiled objects are kept for a cache.
    pub keep_object: bool,
}

/// A compiled PTX module. Never made.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// NUL-terminated PTX.
    pub ptx: Vec<core::ffi::c_char>,
    /// Entry point symbol.
    pub entrypoint: String,
    /// Intermediate code for logs and cache keys.
    pub ir: String,
    /// Shared memory of a launch, in bytes.
    pub shared_memory_size: usize,
    /// Access mode of each buffer.
    pub io: Vec<BufferIOAttr>,
}

/// What compiling would give. Non-exhaustive, because `cubecl-cuda` matches it with a wildcard arm.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PlironArtifact {
    /// A PTX module.
    NvptxCode(NvptxModule),
}

impl core::fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NvptxCode(module) => f.write_str(&module.ir),
        }
    }
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(
        &mut self,
        _kernel: KernelDefinition,
        _options: &Self::CompilationOptions,
    ) -> Result<Self::Representation, CompilationError> {
        Err(CompilationError::Generic {
            reason: ABSENT.to_string(),
            backtrace: BackTrace::capture(),
        })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}
