//! A frozen weight in four bits: NF4 (QLoRA, arXiv 2305.14314) as bitsandbytes lays it out.
//!
//! Every 64 values of the row-major weight share a scale, their largest magnitude; each value becomes the nearest of 16
//! numbers that split a normal distribution evenly. The scales, less their mean, are themselves 8-bit numbers in blocks of
//! 256 (double quantisation): about 4.13 bits for each weight. The weight is made whole again for one product at a time.

mod cpu;
#[cfg(feature = "cube")]
mod cuda;

use std::sync::Arc;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

#[cfg(feature = "cube")]
use crate::device;
use crate::dynamic::SIGNED;
use crate::{fused, linear};

/// Values that share a scale.
const BLOCK: usize = 64;
/// Scales that share a scale.
const OUTER_BLOCK: usize = 256;
/// Codes in a device's word.
const CODES_PER_WORD: usize = 8;

/// The numbers of the sixteen codes (QLoRA, appendix E).
const VALUES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// A weight `[out, in]` in NF4 with double quantisation.
#[derive(Clone, Debug)]
pub struct Nf4 {
    shape: [usize; 2],
    device: Device,
    codes: Arc<Codes>,
    /// The codes in 32-bit words and the scales of the blocks, where the device is not the CPU.
    resident: Option<(Tensor<1, Int>, Tensor<1>)>,
}

/// What is kept of a weight.
#[derive(Debug)]
struct Codes {
    /// Two codes a byte, the first in the upper half.
    values: Vec<u8>,
    /// The scale of each block, quantised.
    scales: Vec<u8>,
    /// The scale of each block of scales.
    outer: Vec<f32>,
    /// Mean of the scales.
    mean: f32,
}

impl Nf4 {
    /// Quantises a weight `[out, in]`, row-major, for use on `device`.
    pub fn quantise(weight: &[f32], shape: [usize; 2], device: &Device) -> Nf4 {
        assert_eq!(
            weight.len(),
            shape[0] * shape[1],
            "nf4: a number for every place"
        );
        let codes = Arc::new(cpu::quantise(weight));
        Nf4::on(device, shape, codes)
    }

    fn on(device: &Device, shape: [usize; 2], codes: Arc<Codes>) -> Nf4 {
        let cpu = *device == Device::flex();
        Nf4 {
            resident: (!cpu).then(|| resident(&codes, shape[0] * shape[1], device)),
            shape,
            device: device.clone(),
            codes,
        }
    }

    /// The same weight for use on `device`.
    #[must_use]
    pub fn to_device(&self, device: &Device) -> Nf4 {
        Nf4::on(device, self.shape, self.codes.clone())
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Where it is used.
    pub fn device(&self) -> Device {
        self.device.clone()
    }

    /// Two codes a byte, the first in the upper half, as bitsandbytes has them.
    pub fn codes(&self) -> &[u8] {
        &self.codes.values
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        nf4_bytes(self.shape[0] * self.shape[1])
    }

    /// The values on the host, row-major.
    pub fn to_vec(&self) -> Vec<f32> {
        cpu::dequantise(&self.codes, self.shape[0] * self.shape[1])
    }

    /// The whole weight, in f32.
    pub fn dequantise(&self) -> Tensor<2> {
        match &self.resident {
            None => fused::plain(self.to_vec(), self.shape),
            #[cfg(feature = "cube")]
            Some((_, scales)) if device::serves(scales) => {
                device::plain(self.on_device().whole(DType::F32))
            }
            Some((words, scales)) => unpack(words, scales, self.shape),
        }
    }
}

#[cfg(feature = "cube")]
impl Nf4 {
    /// What the device's kernel reads.
    fn on_device(&self) -> cuda::Resident {
        let (words, scales) = self.resident.clone().expect("kept where it is used");
        cuda::Resident {
            words: device::int_primitive(words),
            scales: device::primitive(scales),
            shape: self.shape,
        }
    }
}

/// Bytes of a weight of `count` values: half a byte each, a byte for each 64, four for each 16,384, and the mean.
pub fn nf4_bytes(count: usize) -> usize {
    let blocks = count.div_ceil(BLOCK);
    count.div_ceil(2) + blocks + 4 * blocks.div_ceil(OUTER_BLOCK) + 4
}

/// [`linear`] with a weight in NF4, which is frozen. The whole weight exists only while a product is made of it.
///
/// # Shapes
/// * `x`: `[.., in]`, `weight`: `[out, in]`, `bias`: `[out]`
/// * output: `[.., out]`
pub fn nf4_linear<const D: usize>(
    x: Tensor<D>,
    weight: &Nf4,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let mut shape = x.dims();
    let [output, input] = weight.shape;
    assert_eq!(
        shape[D - 1],
        input,
        "nf4_linear: x [.., in] and weight [out, in]"
    );
    #[cfg(feature = "cube")]
    if device::serves(&x) {
        let op = cuda::LinearNf4 {
            weight: weight.on_device(),
            dtype: x.dtype(),
        };
        return match bias {
            None => device::apply(op, [x.into()]),
            Some(bias) => device::apply(op, [x.into(), bias.into()]),
        };
    }
    if !fused::serves(&x) {
        return linear(x, weight.dequantise(), bias);
    }
    shape[D - 1] = output;
    let op = cpu::LinearNf4 {
        input,
        output,
        codes: weight.codes.clone(),
    };
    match bias {
        None => fused::apply(op, [x.into()], shape),
        Some(bias) => fused::apply(op, [x.into(), bias.into()], shape),
    }
}

/// Codes and scales as a device keeps them.
fn resident(codes: &Codes, count: usize, device: &Device) -> (Tensor<1, Int>, Tensor<1>) {
    let words: Vec<i32> = codes
        .values
        .chunks(CODES_PER_WORD / 2)
        .map(|bytes| {
            let mut word = [0; CODES_PER_WORD / 2];
            word[..bytes.len()].copy_from_slice(bytes);
            i32::from_be_bytes(word)
        })
        .collect();
    let (words, scales) = (
        TensorData::new(words, [count.div_ceil(CODES_PER_WORD)]),
        TensorData::new(codes.all_scales(), [count.div_ceil(BLOCK)]),
    );
    (
        Tensor::from_data(words, (device, DType::I32)),
        Tensor::from_data(scales, device),
    )
}

/// The weight from what a device keeps, in plain Burn tensors.
fn unpack(words: &Tensor<1, Int>, scales: &Tensor<1>, shape: [usize; 2]) -> Tensor<2> {
    let (count, device) = (shape[0] * shape[1], words.device());
    let shifts: Vec<i32> = (0..CODES_PER_WORD as i32).rev().map(|i| 4 * i).collect();
    let shifts = TensorData::new(shifts, [1, CODES_PER_WORD]);
    let shifts = Tensor::<2, Int>::from_data(shifts, (&device, DType::I32));
    let [length] = words.dims();
    let codes = words
        .clone()
        .reshape([length, 1])
        .repeat_dim(1, CODES_PER_WORD)
        .bitwise_right_shift(shifts.repeat_dim(0, length))
        .bitwise_and_scalar(15)
        .reshape([length * CODES_PER_WORD]);
    let table = Tensor::<1>::from_data(TensorData::new(VALUES.to_vec(), [16]), &device);
    let blocks = scales.dims()[0];
    let values = table.select(0, codes.narrow(0, 0, count));
    let padded = match blocks * BLOCK - count {
        0 => values,
        missing => Tensor::cat(vec![values, Tensor::zeros([missing], &device)], 0),
    };
    let scaled = padded.reshape([blocks, BLOCK]) * scales.clone().reshape([blocks, 1]);
    scaled
        .reshape([blocks * BLOCK])
        .narrow(0, 0, count)
        .reshape(shape)
}

impl Codes {
    fn scale(&self, block: usize) -> f32 {
        SIGNED.value(self.scales[block]) * self.outer[block / OUTER_BLOCK] + self.mean
    }

    fn all_scales(&self) -> Vec<f32> {
        (0..self.scales.len())
            .map(|block| self.scale(block))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_keeps_is_the_same_weight() {
        for shape in [[1, 1], [3, 33], [64, 70]] {
            let weight: Vec<f32> = (0..shape[0] * shape[1])
                .map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0) * (1 + i / 64) as f32)
                .collect();
            let quantised = Nf4::quantise(&weight, shape, &Device::flex());
            let (words, scales) = resident(&quantised.codes, weight.len(), &Device::flex());
            let unpacked = unpack(&words, &scales, shape).try_into_vec_as::<f32>();
            assert_eq!(unpacked.expect("f32"), quantised.to_vec());
        }
    }

    #[test]
    fn the_largest_of_a_block_of_one_scale_is_kept() {
        let mut weight = vec![0.25; BLOCK];
        weight[7] = -4.0;
        let quantised = Nf4::quantise(&weight, [1, BLOCK], &Device::flex());
        assert_eq!(quantised.to_vec()[7], -4.0);
        assert_eq!(quantised.bytes(), 32 + 1 + 4 + 4);
    }
}
