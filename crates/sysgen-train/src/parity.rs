//! Every op of `sysgen-ops` on a device beside the CPU's: the one place where `doctor` asks for it.

use burn::tensor::DType;
use sysgen_model::Device;
use sysgen_ops::parity::compare;

use crate::doctor::Figure;
use crate::matmul::dtype_name;

/// One figure for each op, case and number format. The CPU would only be held against itself.
pub(crate) fn ops(device: &Device) -> Option<Vec<Figure>> {
    if *device == Device::flex() {
        return None;
    }
    let formats = [DType::F32, DType::BF16].into_iter();
    let supported = formats.filter(|dtype| device.supports_dtype(*dtype));
    let comparisons = supported.flat_map(|dtype| compare(device, dtype));
    Some(
        comparisons
            .map(|comparison| Figure {
                check: "op",
                name: comparison.op.into(),
                case: comparison.case,
                dtype: dtype_name(comparison.dtype),
                error: comparison.error,
                tolerance: comparison.tolerance,
            })
            .collect(),
    )
}
