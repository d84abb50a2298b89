//! The AdamW step with 8-bit moments on a device: a cube for each block of 256 numbers, a unit for each number. The codes are
//! those of the CPU: found by the same comparisons with the same middles.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::AdamW;
use super::cuda::{rounded_at, writable};
use super::eight_bit::{BLOCK, Quantised};
use crate::dynamic::{SIGNED, UNSIGNED};
use crate::launch::{
    addresses, buffer, contiguous, cube_max, element, grid, plane_slots, upload, upload_floats,
};

/// Codes in a word, the first in its lowest bits.
const CODES_PER_WORD: usize = 4;
/// Words of a block.
const WORDS: usize = BLOCK / CODES_PER_WORD;
/// Numbers of a data type, and of the middles between them.
const VALUES: usize = 256;
const MIDDLES: usize = VALUES - 1;

/// Both moments of a parameter on its device.
#[derive(Clone, Debug)]
pub(super) struct Resident {
    /// Of each moment: its codes, in whole blocks.
    words: [CubeTensor; 2],
    /// Of each moment: the scale of every block.
    scales: [CubeTensor; 2],
    pub(super) count: usize,
}

impl Resident {
    /// On the device of `other`.
    pub(super) fn new(other: &CubeTensor, moments: &[Quantised; 2]) -> Resident {
        let count = moments[0].codes.len();
        let packed = |moment: &Quantised| {
            let mut codes = moment.codes.clone();
            codes.resize(count.next_multiple_of(BLOCK), 0);
            let words = codes.as_chunks::<CODES_PER_WORD>().0;
            let words: Vec<u32> = words
                .iter()
                .map(|codes| u32::from_le_bytes(*codes))
                .collect();
            upload(other, &words)
        };
        Resident {
            words: [&moments[0], &moments[1]].map(packed),
            scales: [&moments[0], &moments[1]].map(|moment| upload_floats(other, &moment.scales)),
            count,
        }
    }

    /// The codes of a moment on the host.
    pub(super) fn codes(&self, moment: usize) -> Vec<u8> {
        let bytes = read(&self.words[moment]);
        // Words are little-endian, on the host as on every device there is.
        bytes[..self.count].to_vec()
    }

    /// The scales of a moment on the host.
    pub(super) fn scales(&self, moment: usize) -> Vec<f32> {
        let blocks = self.count.div_ceil(BLOCK);
        let bytes = read(&self.scales[moment]);
        let numbers = bytes.as_chunks::<4>().0.iter().take(blocks);
        numbers.map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    /// Parameter and moments after the step; what nobody else holds is written in place.
    pub(super) fn step(
        self,
        parameter: CubeTensor,
        gradient: CubeTensor,
        settings: &AdamW,
        step: u64,
    ) -> (CubeTensor, Resident) {
        let AdamW {
            learning_rate,
            beta1,
            beta2,
            epsilon,
            weight_decay,
            rounding_seed,
        } = *settings;
        let gradient = contiguous(gradient);
        let parameter = writable(parameter);
        if self.count == 0 {
            return (parameter, self);
        }
        let (count, words) = (self.count, self.words.map(writable));
        let scales = self.scales.map(writable);
        let tables = upload_floats(&parameter, &tables());
        let blocks = count.div_ceil(BLOCK);
        let correction1 = 1.0 - beta1.powf(step as f64);
        let root_correction = (1.0 - beta2.powf(step as f64)).sqrt();
        // SAFETY: a cube touches one of `blocks` blocks, which end at `count`; `writable` made sure that nobody else sees
        // the change.
        unsafe {
            update::launch_unchecked(
                &parameter.client,
                grid(&parameter.client, blocks),
                CubeDim::new_1d(BLOCK as u32),
                addresses(&[&parameter, &gradient]),
                buffer(&parameter),
                buffer(&gradient),
                buffer(&words[0]),
                buffer(&words[1]),
                buffer(&scales[0]),
                buffer(&scales[1]),
                buffer(&tables),
                blocks,
                count,
                (1.0 - learning_rate * weight_decay) as f32,
                beta1 as f32,
                (1.0 - beta1) as f32,
                beta2 as f32,
                (1.0 - beta2) as f32,
                root_correction as f32,
                (learning_rate / correction1) as f32,
                epsilon as f32,
                rounding_seed,
                parameter.dtype == DType::BF16,
                [element(&parameter), element(&gradient)],
            );
        }
        let moments = Resident {
            words,
            scales,
            count,
        };
        (parameter, moments)
    }
}

/// The bytes of a tensor on the host.
fn read(tensor: &CubeTensor) -> Vec<u8> {
    let data = burn_cubecl::ops::into_data_sync(tensor.clone());
    data.as_bytes().to_vec()
}

/// Values and middles of the signed data type, then of the unsigned one.
fn tables() -> Vec<f32> {
    let of =
        |code: &crate::dynamic::Code| [code.values().to_vec(), code.middles().to_vec()].concat();
    [of(&SIGNED), of(&UNSIGNED)].concat()
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn update<P: Float, G: Float>(
    parameter: &mut [P],
    gradient: &[G],
    first_words: &mut [u32],
    second_words: &mut [u32],
    first_scales: &mut [f32],
    second_scales: &mut [f32],
    tables: &[f32],
    blocks: usize,
    count: usize,
    keep: f32,
    old1: f32,
    new1: f32,
    old2: f32,
    new2: f32,
    root_correction: f32,
    size: f32,
    epsilon: f32,
    seed: u32,
    #[comptime] stochastic: bool,
    #[define(P, G)] _types: [ElemType; 2],
) {
    let block = CUBE_POS;
    if block >= blocks {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let i = block * BLOCK + unit;
    let word = block * WORDS + unit / CODES_PER_WORD;
    let shift = 8 * (unit % CODES_PER_WORD) as u32;
    let code1 = (first_words[word] >> shift) & 255;
    let code2 = (second_words[word] >> shift) & 255;
    let mut m = 0.0f32;
    let mut v = 0.0f32;
    // All units of a cube have to take part in what follows, also those past the last number.
    if i < count {
        let g = f32::cast_from(gradient[i]);
        m = old1 * (tables[code1 as usize] * first_scales[block]) + new1 * g;
        v = old2 * (tables[VALUES + MIDDLES + code2 as usize] * second_scales[block])
            + new2 * g * g;
        let root = v.sqrt() / root_correction + epsilon;
        let mut p = f32::cast_from(parameter[i]) * keep - size * (m / root);
        if stochastic {
            p = rounded_at(p, seed, i as u32);
        }
        parameter[i] = P::cast_from(p);
    }
    let mut slots = plane_slots();
    let mut magnitude = m;
    if m < 0.0 {
        magnitude = -m;
    }
    // The first sum waits for all units, so that no code or scale is overwritten before everybody has read it.
    let scale1 = cube_max(magnitude, &mut slots);
    let scale2 = cube_max(v, &mut slots);
    let mut codes = Shared::<[u32]>::new_slice(2 * BLOCK);
    codes[unit] = nearest(m, scale1, tables, VALUES);
    codes[BLOCK + unit] = nearest(v, scale2, tables, 2 * VALUES + MIDDLES);
    sync_cube();
    if unit < WORDS {
        first_words[block * WORDS + unit] = packed(&codes, unit * CODES_PER_WORD);
        second_words[block * WORDS + unit] = packed(&codes, BLOCK + unit * CODES_PER_WORD);
    }
    if unit == 0 {
        first_scales[block] = scale1;
        second_scales[block] = scale2;
    }
}

/// How many of the 255 ascending middles that begin at `start` lie below `x / scale`.
#[cube]
fn nearest(x: f32, scale: f32, tables: &[f32], start: usize) -> u32 {
    let mut inverse = 0.0f32;
    if scale > 0.0 {
        inverse = 1.0 / scale;
    }
    let x = x * inverse;
    let mut below = 0usize;
    let mut step = 128usize;
    while step > 0 {
        if tables[start + below + step - 1] < x {
            below += step;
        }
        step /= 2;
    }
    below as u32
}

#[cube]
fn packed(codes: &Shared<[u32]>, from: usize) -> u32 {
    codes[from] | codes[from + 1] << 8 | codes[from + 2] << 16 | codes[from + 3] << 24
}
