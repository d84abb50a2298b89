//! What the kernels of this crate share: tensors they can read, how many units to launch, sums over a cube.
//!
//! Words as in CubeCL: a *unit* is a CUDA thread, a *plane* a warp, a *cube* a block.

use std::ops::Range;

use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::matmul::MatmulStrategy;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::server::CubeCountSelection;

use crate::device::{plain, primitive};

/// Units of a cube, at most.
const UNITS: usize = 256;
/// Planes of a cube, at most: [`UNITS`] of the narrowest plane there is.
const PLANES: usize = UNITS / 4;

/// The tensor with its numbers side by side in row-major order. CUDA tensors often are not: their rows are padded.
pub(crate) fn contiguous(tensor: CubeTensor) -> CubeTensor {
    burn_cubecl::kernel::into_contiguous(tensor)
}

/// An uninitialised contiguous tensor on the device of `other`.
pub(crate) fn empty(other: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    let (client, device) = (other.client.clone(), other.device.clone());
    empty_device_contiguous_dtype(client, device, shape.into(), dtype)
}

/// An uninitialised contiguous tensor in the shape and dtype of `other`.
pub(crate) fn empty_like(other: &CubeTensor) -> CubeTensor {
    empty(other, other.meta.shape().clone(), other.dtype)
}

/// Numbers from the host as a tensor on the device of `other`.
pub(crate) fn upload(other: &CubeTensor, values: &[u32]) -> CubeTensor {
    uploaded(other, u32::as_bytes(values), values.len(), DType::U32)
}

/// As [`upload`].
pub(crate) fn upload_floats(other: &CubeTensor, values: &[f32]) -> CubeTensor {
    uploaded(other, f32::as_bytes(values), values.len(), DType::F32)
}

fn uploaded(other: &CubeTensor, bytes: &[u8], count: usize, dtype: DType) -> CubeTensor {
    let handle = other.client.create_from_slice(bytes);
    let (client, device) = (other.client.clone(), other.device.clone());
    CubeTensor::new_contiguous(client, device, Shape::new([count]), handle, dtype)
}

/// `target` with `part` in its place, written without a copy of the rest if nobody else holds `target`.
pub(crate) fn written<const D: usize>(
    target: CubeTensor,
    place: [Range<usize>; D],
    part: CubeTensor,
) -> CubeTensor {
    primitive(plain::<D>(target).slice_assign(place, plain(part)))
}

/// How a kernel sees a contiguous tensor.
pub(crate) fn buffer(tensor: &CubeTensor) -> BufferArg {
    tensor.clone().into_buffer_arg()
}

/// How a kernel's element type is named.
pub(crate) fn element(tensor: &CubeTensor) -> ElemType {
    dtype_to_storage_type(tensor.dtype)
}

/// The address type that reaches every number of the tensors.
pub(crate) fn addresses(tensors: &[&CubeTensor]) -> AddressType {
    let largest = tensors.iter().map(|tensor| tensor.required_address_type());
    largest.max().unwrap_or_default()
}

/// The most numbers a unit can load at once from all of the tensors, such that all `lengths` are multiples of it.
pub(crate) fn vector_size(tensors: &[&CubeTensor], lengths: &[usize]) -> VectorSize {
    let widest = |tensor: &&CubeTensor| {
        let sizes = tensor.client.io_optimized_vector_sizes(tensor.dtype.size());
        sizes.max().unwrap_or(1)
    };
    let mut size = tensors.iter().map(widest).min().unwrap_or(1);
    while lengths.iter().any(|length| !length.is_multiple_of(size)) {
        size /= 2;
    }
    size
}

/// Cubes for `count` units that work alone, and how many units each has. There may be more units than `count`.
pub(crate) fn elementwise(client: &Client, count: usize) -> (CubeCount, CubeDim) {
    (
        grid(client, count.div_ceil(UNITS)),
        CubeDim::new_1d(UNITS as u32),
    )
}

/// A cube for each of `rows` rows, with enough units for rows of `width` vectors. There may be more cubes than `rows`.
pub(crate) fn row_wise(client: &Client, rows: usize, width: usize) -> (CubeCount, CubeDim) {
    let plane = client.properties().hardware.plane_size_max as usize;
    let units = width.next_power_of_two().clamp(plane, UNITS);
    (grid(client, rows), CubeDim::new_1d(units as u32))
}

/// Units of a plane, if all planes of the device have as many.
pub(crate) fn plane_size(client: &Client) -> Option<usize> {
    let hardware = &client.properties().hardware;
    let [least, most] = [hardware.plane_size_min, hardware.plane_size_max];
    (least == most).then_some(most as usize)
}

/// At least `count` cubes.
pub(crate) fn grid(client: &Client, count: usize) -> CubeCount {
    CubeCountSelection::new(client, count as u32).cube_count()
}

/// The tensor with its last two dimensions swapped; nothing is copied.
pub(crate) fn transposed(mut tensor: CubeTensor) -> CubeTensor {
    let rank = tensor.meta.num_dims();
    tensor.meta.swap(rank - 2, rank - 1);
    tensor
}

/// The same numbers in `dtype`; the tensor itself where they are.
pub(crate) fn in_dtype(tensor: CubeTensor, dtype: DType) -> CubeTensor {
    burn_cubecl::kernel::cast(tensor, dtype)
}

/// The matrix product of the last two dimensions, summed in f32 and written as a contiguous tensor of `dtype`.
pub(crate) fn product(lhs: CubeTensor, rhs: CubeTensor, dtype: DType) -> CubeTensor {
    // Burn's kernels would take the right side's bytes for numbers of the left side's format.
    assert_eq!(lhs.dtype, rhs.dtype, "a product of one number format");
    let mut shape = lhs.meta.shape().clone();
    let rank = shape.num_dims();
    shape[rank - 1] = rhs.meta.shape()[rank - 1];
    let out = empty(&lhs, shape, dtype);
    burn_cubecl::kernel::matmul::matmul(lhs, rhs, Some(out), MatmulStrategy::default(), dtype)
        .expect("the shapes of a matrix product agree")
}

/// Room for one number of each plane, to be shared by the calls of [`cube_sum`] and [`cube_max`] in a kernel.
#[cube]
pub(crate) fn plane_slots() -> Shared<[f32]> {
    Shared::new_slice(PLANES)
}

/// The sum of `value` over all units of the cube, in the same order on every run. All units must call it.
#[cube]
pub(crate) fn cube_sum(value: f32, slots: &mut Shared<[f32]>) -> f32 {
    let part = plane_sum(value);
    // Others may still be reading the slots of the call before.
    sync_cube();
    if UNIT_POS_PLANE == 0 {
        slots[PLANE_POS as usize] = part;
    }
    sync_cube();
    let mut total = 0.0f32;
    for plane in 0..CUBE_DIM / PLANE_DIM {
        total += slots[plane as usize];
    }
    total
}

/// The largest `value` of all units of the cube. All units must call it.
#[cube]
pub(crate) fn cube_max(value: f32, slots: &mut Shared<[f32]>) -> f32 {
    let part = plane_max(value);
    sync_cube();
    if UNIT_POS_PLANE == 0 {
        slots[PLANE_POS as usize] = part;
    }
    sync_cube();
    let mut largest = slots[0];
    for plane in 0..CUBE_DIM / PLANE_DIM {
        largest = max(largest, slots[plane as usize]);
    }
    largest
}

/// `tanh` that stays finite where a driver computes it from `exp`, and of a NaN a NaN: `max` and `min` of CUDA, and some
/// drivers' own `tanh`, would make a number of it.
#[cube]
pub(crate) fn bounded_tanh<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let bounded = min(max(x, Vector::new(-15.0)), Vector::new(15.0));
    select_many(x.is_nan(), x, bounded.tanh())
}

/// `cap · tanh(x / cap)` if it is `capped`.
#[cube]
pub(crate) fn softcapped<N: Size>(
    x: Vector<f32, N>,
    cap: f32,
    #[comptime] capped: bool,
) -> Vector<f32, N> {
    if capped {
        Vector::new(cap) * bounded_tanh(x / Vector::new(cap))
    } else {
        x
    }
}

/// [`softcapped`] of one number.
#[cube]
pub(crate) fn softcapped_number(x: f32, cap: f32, #[comptime] capped: bool) -> f32 {
    softcapped::<Const<1>>(Vector::new(x), cap, capped).extract(0usize)
}
