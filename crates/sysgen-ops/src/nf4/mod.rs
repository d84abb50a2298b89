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
    held: Held,
}

/// Where the weight is: on the CPU or on a device, not on both.
#[derive(Clone, Debug)]
enum Held {
    Host(Arc<Codes>),
    Device(Box<Resident>),
}

/// What is kept of a weight.
#[derive(Debug, PartialEq)]
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

/// The same on a device, with a kilobyte of tables.
#[derive(Clone, Debug)]
struct Resident {
    /// Eight codes of values a word, the first in the uppermost bits.
    values: Tensor<1, Int>,
    /// Four codes of scales a word, likewise.
    scales: Tensor<1, Int>,
    /// The mean of the scales, [`VALUES`], the 256 numbers of the scales' codes, the scale of each block of scales.
    numbers: Tensor<1>,
}

/// Where the parts of [`Resident::numbers`] begin, after the mean.
const VALUES_AT: usize = 1;
const SCALES_AT: usize = VALUES_AT + 16;
const OUTER_AT: usize = SCALES_AT + 256;

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
        let held = match *device == Device::flex() {
            true => Held::Host(codes),
            false => Held::Device(Box::new(Resident::new(&codes, device))),
        };
        Nf4 {
            shape,
            device: device.clone(),
            held,
        }
    }

    /// The same weight for use on `device`.
    #[must_use]
    pub fn to_device(&self, device: &Device) -> Nf4 {
        if self.device == *device {
            return self.clone();
        }
        Nf4::on(device, self.shape, self.on_host())
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Where it is used.
    pub fn device(&self) -> Device {
        self.device.clone()
    }

    /// Two codes a byte, the first in the upper half, as bitsandbytes has them; read back from a device.
    pub fn codes(&self) -> Vec<u8> {
        self.on_host().values.clone()
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        nf4_bytes(self.shape[0] * self.shape[1])
    }

    /// The values on the host, row-major.
    pub fn to_vec(&self) -> Vec<f32> {
        cpu::dequantise(&self.on_host(), self.shape[0] * self.shape[1])
    }

    /// The whole weight, in f32.
    pub fn dequantise(&self) -> Tensor<2> {
        match &self.held {
            Held::Host(_) => fused::plain(self.to_vec(), self.shape),
            #[cfg(feature = "cube")]
            Held::Device(resident) if device::serves(&resident.numbers) => {
                device::plain(self.on_device().whole(DType::F32))
            }
            Held::Device(_) => {
                Tensor::from_data(TensorData::new(self.to_vec(), self.shape), &self.device)
            }
        }
    }

    fn on_host(&self) -> Arc<Codes> {
        match &self.held {
            Held::Host(codes) => codes.clone(),
            Held::Device(resident) => Arc::new(resident.read_back(self.shape[0] * self.shape[1])),
        }
    }
}

#[cfg(feature = "cube")]
impl Nf4 {
    /// What the device's kernel reads.
    fn on_device(&self) -> cuda::Weight {
        let Held::Device(resident) = &self.held else {
            unreachable!("a weight is used on its own device")
        };
        cuda::Weight {
            values: device::int_primitive(resident.values.clone()),
            scales: device::int_primitive(resident.scales.clone()),
            numbers: device::primitive(resident.numbers.clone()),
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
        codes: weight.on_host(),
    };
    match bias {
        None => fused::apply(op, [x.into()], shape),
        Some(bias) => fused::apply(op, [x.into(), bias.into()], shape),
    }
}

impl Resident {
    fn new(codes: &Codes, device: &Device) -> Resident {
        let words = |bytes: &[u8]| {
            let words: Vec<i32> = bytes
                .chunks(4)
                .map(|bytes| {
                    let mut word = [0; 4];
                    word[..bytes.len()].copy_from_slice(bytes);
                    i32::from_be_bytes(word)
                })
                .collect();
            let count = words.len();
            Tensor::from_data(TensorData::new(words, [count]), (device, DType::I32))
        };
        let tables = [&[codes.mean][..], &VALUES, SIGNED.values(), &codes.outer];
        let numbers = tables.concat();
        let count = numbers.len();
        Resident {
            values: words(&codes.values),
            scales: words(&codes.scales),
            numbers: Tensor::from_data(TensorData::new(numbers, [count]), (device, DType::F32)),
        }
    }

    /// The codes of `count` values.
    fn read_back(&self, count: usize) -> Codes {
        let bytes = |words: &Tensor<1, Int>, count: usize| -> Vec<u8> {
            let words = words.clone().into_data().convert::<i32>();
            let words: Vec<i32> = words.try_to_vec().expect("just made i32");
            let bytes = words.iter().flat_map(|word| word.to_be_bytes());
            bytes.take(count).collect()
        };
        let numbers = self.numbers.clone().into_data().convert::<f32>();
        let numbers: Vec<f32> = numbers.try_to_vec().expect("just made f32");
        Codes {
            values: bytes(&self.values, count.div_ceil(2)),
            scales: bytes(&self.scales, count.div_ceil(BLOCK)),
            outer: numbers[OUTER_AT..].to_vec(),
            mean: numbers[0],
        }
    }
}

impl Codes {
    fn scale(&self, block: usize) -> f32 {
        SIGNED.value(self.scales[block]) * self.outer[block / OUTER_BLOCK] + self.mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_keeps_is_read_back_as_it_was() {
        for shape in [[1, 1], [3, 33], [64, 70], [130, 256]] {
            let weight: Vec<f32> = (0..shape[0] * shape[1])
                .map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0) * (1 + i / 64) as f32)
                .collect();
            let quantised = Nf4::quantise(&weight, shape, &Device::flex());
            let Held::Host(codes) = quantised.held else {
                panic!("on the CPU")
            };
            let resident = Resident::new(&codes, &Device::flex());
            assert_eq!(resident.read_back(weight.len()), *codes);
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
