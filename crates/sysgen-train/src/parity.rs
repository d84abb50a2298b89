//! An op of `sysgen-ops` on a device beside the CPU's: the one place where `doctor` asks for it.

use burn::tensor::DType;
use sysgen_model::Device;
use sysgen_ops::parity::compare_operation;

use crate::doctor::Figure;
use crate::matmul::dtype_name;

/// One figure for each case and number format of an op.
pub(crate) fn op(op: &str, device: &Device) -> Vec<Figure> {
    let formats = [DType::F32, DType::BF16].into_iter();
    let supported = formats.filter(|dtype| device.supports_dtype(*dtype));
    supported
        .flat_map(|dtype| compare_operation(op, device, dtype))
        .map(|comparison| Figure {
            check: "op",
            name: comparison.op.into(),
            case: comparison.case,
            dtype: dtype_name(comparison.dtype),
            error: comparison.error,
            tolerance: comparison.tolerance,
        })
        .collect()
}
