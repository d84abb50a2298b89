//! Whether a GPU may round f32 numbers to TF32, which keeps 10 bits of their 23 behind the point, to multiply them on its
//! matrix units. Of what goes through those kernels a thousandth is then rounding, and no result tells.

#[cfg(feature = "cube")]
use cubek_std::config::{CubekConfig, MatmulConfig, RuntimeConfig};

/// Decides for the process whether f32 products on a GPU may be of TF32; the first call counts, and so does a product before
/// it, which allows it. A CPU has none.
pub fn decide_tf32(allowed: bool) {
    #[cfg(feature = "cube")]
    CubekConfig::try_set(CubekConfig {
        matmul: MatmulConfig {
            allow_tf32: allowed,
        },
    });
    #[cfg(not(feature = "cube"))]
    let _ = allowed;
}

/// What was decided; from now on it stays.
pub fn tf32_is_allowed() -> bool {
    #[cfg(feature = "cube")]
    return MatmulConfig::get().allow_tf32;
    #[cfg(not(feature = "cube"))]
    false
}
