//! Training attention by flash kernels (cubek's, as Burn launches them), where scores are neither capped nor windowed.
//!
//! These kernels know no segments. So a batch is cut into its segments, and those of similar length are padded on the
//! right to one length; under a causal mask no position of a segment sees the padding after it.

use std::collections::BTreeMap;

use burn::backend::ops::AttentionModuleOptions;
use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::attention::{
    attention_backward, attention_with_logsumexp, backward_serves,
};
use burn_cubecl::tensor::CubeTensor;
use cubecl::device::RuntimeId;
use cubecl::prelude::*;

use super::{AttentionShape, Segments};
use crate::device::{plain, primitive};
use crate::launch::{
    addresses, buffer, contiguous, element, elementwise, empty, upload, vector_size,
};
use crate::tf32::tf32_is_allowed;

/// The shortest length segments are padded to.
const SHORTEST: usize = 64;
/// In a [`Bucket`]: nothing but padding here.
const NOWHERE: u32 = u32::MAX;

/// A batch cut into segments.
#[derive(Debug)]
pub(super) struct Flash {
    buckets: Vec<Bucket>,
    options: AttentionModuleOptions,
}

/// Segments padded to one length.
#[derive(Debug)]
struct Bucket {
    length: usize,
    /// `[segments, length]`: where in `[batch · time]` each position comes from.
    source: Vec<u32>,
}

impl Flash {
    /// The batch in segments if these kernels serve it.
    pub(super) fn new(
        q: &Tensor<4>,
        k: &Tensor<4>,
        segments: &Segments,
        shape: AttentionShape,
    ) -> Option<Self> {
        let runs = runs(segments);
        let longest = runs.iter().map(|&(_, length)| length).max()?;
        let options = AttentionModuleOptions {
            scale: Some(f64::from(shape.scale)),
            softcap: shape.softcap.map(f64::from),
            is_causal: true,
            ..Default::default()
        };
        let [q, k] = [q, k].map(|x| heads_first(primitive(x.clone())));
        // On Vulkan they are not verified: tuning them ends a software device (Mesa's lavapipe).
        // Of f32 they make TF32, whatever was decided about matrix products.
        let serves = q.device.runtime() == RuntimeId::Cuda
            && (q.dtype != DType::F32 || tf32_is_allowed())
            && shape.window.is_none_or(|window| window >= longest)
            && backward_serves(&q, &k, &k, &options);
        serves.then(|| Self {
            buckets: buckets(&runs),
            options,
        })
    }

    /// The output, and the log-sum-exp of each bucket.
    pub(super) fn forward(
        &self,
        q: &CubeTensor,
        k: &CubeTensor,
        v: &CubeTensor,
    ) -> (CubeTensor, Vec<CubeTensor>) {
        let out = zeros_like(q);
        let mut sums = vec![];
        for bucket in &self.buckets {
            let source = upload(q, &bucket.source);
            let [q, k, v] = [q, k, v].map(|x| heads_first(bucket.gathered(x, &source)));
            let (part, sum) = attention_with_logsumexp(q, k, v, self.options);
            bucket.scatter(part, &source, &out);
            sums.push(sum);
        }
        (out, sums)
    }

    /// The gradients of q, k and v.
    pub(super) fn backward(
        &self,
        [q, k, v, out]: [&CubeTensor; 4],
        sums: &[CubeTensor],
        d_out: &CubeTensor,
    ) -> Vec<CubeTensor> {
        let gradients = vec![zeros_like(q), zeros_like(k), zeros_like(v)];
        for (bucket, sum) in self.buckets.iter().zip(sums) {
            let source = upload(q, &bucket.source);
            let [q, k, v, out, d_out] =
                [q, k, v, out, d_out].map(|x| heads_first(bucket.gathered(x, &source)));
            let parts = attention_backward(q, k, v, out, sum.clone(), d_out, self.options);
            bucket.scatter(parts.query_grad, &source, &gradients[0]);
            bucket.scatter(parts.key_grad, &source, &gradients[1]);
            bucket.scatter(parts.value_grad, &source, &gradients[2]);
        }
        gradients
    }
}

/// Start in `[batch · time]` and length of every segment.
fn runs(segments: &Segments) -> Vec<(usize, usize)> {
    let mut runs = vec![];
    for (row, ids) in segments.ids.chunks(segments.time).enumerate() {
        let mut start = row * segments.time;
        for run in ids.chunk_by(|a, b| a == b) {
            if run[0] != 0 {
                runs.push((start, run.len()));
            }
            start += run.len();
        }
    }
    runs
}

fn buckets(runs: &[(usize, usize)]) -> Vec<Bucket> {
    let mut by_length = BTreeMap::<usize, Vec<u32>>::new();
    for &(start, length) in runs {
        let padded = padded(length);
        let source = by_length.entry(padded).or_default();
        source.extend(start as u32..(start + length) as u32);
        source.extend(std::iter::repeat_n(NOWHERE, padded - length));
    }
    let buckets = by_length.into_iter();
    buckets
        .map(|(length, source)| Bucket { length, source })
        .collect()
}

/// Powers of two and the numbers half-way: few lengths, because kernels are tuned for each, and little padding.
fn padded(length: usize) -> usize {
    let power = length.max(SHORTEST).next_power_of_two();
    if power > SHORTEST && length <= power / 4 * 3 {
        power / 4 * 3
    } else {
        power
    }
}

/// `[segments, heads, length, size]`, a view.
fn heads_first(x: CubeTensor) -> CubeTensor {
    primitive(plain::<4>(x).swap_dims(1, 2))
}

fn zeros_like(x: &CubeTensor) -> CubeTensor {
    let x: Tensor<4> = plain(x.clone());
    contiguous(primitive(x.zeros_like()))
}

impl Bucket {
    fn segments(&self) -> usize {
        self.source.len() / self.length
    }

    /// The bucket's part of `[batch, time, heads, size]` as `[segments, length, heads, size]`, with zeros for padding.
    fn gathered(&self, x: &CubeTensor, source: &CubeTensor) -> CubeTensor {
        let [_, _, heads, size] = x.meta.shape().dims();
        let out = empty(x, [self.segments(), self.length, heads, size], x.dtype);
        let vector = vector_size(&[x], &[heads * size]);
        let width = heads * size / vector;
        let total = self.source.len() * width;
        let (count, units) = elementwise(&x.client, total);
        // SAFETY: units past the last vector return; `source` points into x.
        unsafe {
            gather::launch_unchecked(
                &x.client,
                count,
                units,
                addresses(&[x, &out]),
                vector,
                buffer(x),
                buffer(source),
                buffer(&out),
                total,
                width,
                element(x),
            );
        }
        out
    }

    /// Writes `[segments, heads, length, size]` (of any strides) to its place in `[batch, time, heads, size]`.
    fn scatter(&self, part: CubeTensor, source: &CubeTensor, all: &CubeTensor) {
        let [_, _, heads, size] = all.meta.shape().dims();
        let part = match part.meta.strides()[3] {
            1 => part,
            _ => contiguous(part),
        };
        let strides = part.meta.strides();
        let vector = vector_size(&[&part, all], &[size, strides[0], strides[1], strides[2]]);
        let width = size / vector;
        let total = self.source.len() * heads * width;
        let (count, units) = elementwise(&all.client, total);
        // SAFETY: units past the last vector return; `source` points into `all`, each position once.
        unsafe {
            scatter::launch_unchecked(
                &all.client,
                count,
                units,
                addresses(&[&part, all]),
                vector,
                part.clone().into_tensor_arg(),
                buffer(source),
                buffer(all),
                total,
                self.length,
                heads,
                width,
                element(all),
            );
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn gather<F: Float, N: Size>(
    x: &[Vector<F, N>],
    source: &[u32],
    out: &mut [Vector<F, N>],
    total: usize,
    width: usize,
    #[define(F)] _type: ElemType,
) {
    if ABSOLUTE_POS >= total {
        terminate!();
    }
    let token = source[ABSOLUTE_POS / width];
    let mut value = Vector::<F, N>::new(F::new(0.0));
    if token != NOWHERE {
        value = x[token as usize * width + ABSOLUTE_POS % width];
    }
    out[ABSOLUTE_POS] = value;
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn scatter<F: Float, N: Size>(
    part: &cubecl::prelude::Tensor<Vector<F, N>>,
    source: &[u32],
    all: &mut [Vector<F, N>],
    total: usize,
    length: usize,
    heads: usize,
    width: usize,
    #[define(F)] _type: ElemType,
) {
    if ABSOLUTE_POS >= total {
        terminate!();
    }
    let (row, i) = (ABSOLUTE_POS / width, ABSOLUTE_POS % width);
    let (slot, head) = (row / heads, row % heads);
    let token = source[slot];
    if token != NOWHERE {
        let start =
            slot / length * part.stride(0) + head * part.stride(1) + slot % length * part.stride(2);
        all[(token as usize * heads + head) * width + i] = part[start / N::value() + i];
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use burn::tensor::{Device, DeviceKind, DeviceType, TensorData};

    use super::*;

    #[test]
    fn padding_is_at_most_half_a_segment() {
        for length in SHORTEST..5000 {
            let padded = padded(length);
            assert!(
                length <= padded && 2 * padded <= 3 * length,
                "{length}: {padded}"
            );
            assert_eq!(padded % 32, 0);
        }
        assert_eq!(padded(1), SHORTEST);
    }

    #[test]
    fn segments_come_back_to_their_place() {
        if Device::enumerate(DeviceType::Wgpu).is_empty() {
            eprintln!("SKIPPED: no Vulkan device, so no kernel was run");
            return;
        }
        let (batch, time, heads, size) = (2, 300, 3, 20);
        let ids: Vec<u32> = (0..batch * time)
            .map(|i| match i {
                0..3 | 450.. => 0,
                3..70 => 1,
                70..75 => 2,
                75..400 => 3,
                _ => 4,
            })
            .collect();
        let segments = Segments { batch, time, ids };
        let values: Vec<f32> = (1..=batch * time * heads * size)
            .map(|i| i as f32)
            .collect();
        let device = Device::wgpu(DeviceKind::DefaultDevice);
        let data = TensorData::new(values.clone(), [batch, time, heads, size]);
        let x = contiguous(primitive(Tensor::<4>::from_data(data, &device)));
        let all = zeros_like(&x);
        for bucket in buckets(&runs(&segments)) {
            let source = upload(&x, &bucket.source);
            let part = heads_first(bucket.gathered(&x, &source));
            // Both layouts the flash kernels give back.
            for part in [contiguous(part.clone()), part] {
                bucket.scatter(part, &source, &all);
            }
        }
        let ours: Vec<f32> = plain::<4>(all).into_data().try_to_vec().expect("f32");
        for (token, &id) in segments.ids.iter().enumerate() {
            let range = token * heads * size..(token + 1) * heads * size;
            let exact = match id {
                0 => vec![0.0; heads * size],
                _ => values[range.clone()].to_vec(),
            };
            assert_eq!(ours[range], exact, "position {token}");
        }
    }
}
