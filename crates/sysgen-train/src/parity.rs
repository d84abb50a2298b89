//! Every op of `sysgen-ops` on a device beside the CPU's: the one place where `doctor` asks for it.

use sysgen_model::Device;

use crate::doctor::Figure;

/// One figure for each op, case and number format; `None` where this build has nothing to compare ops with.
pub(crate) fn ops(_device: &Device) -> Option<Vec<Figure>> {
    None
}
