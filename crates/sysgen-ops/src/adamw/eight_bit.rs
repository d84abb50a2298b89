//! AdamW with its moments in eight bits (Dettmers et al., arXiv 2110.02861; block size and data types of bitsandbytes):
//! every 256 numbers share a scale, the first moment has a sign, the second has not. A moment is whole only while its block
//! is updated. They lie where the parameter does; a device keeps four codes in a word.

use std::borrow::Cow;

use burn::tensor::{DType, Device, Tensor, bf16};
use rayon::prelude::*;

use super::AdamW;
#[cfg(feature = "cube")]
use super::eight_bit_cuda::Resident;
use super::rounding::Kept;
#[cfg(feature = "cube")]
use crate::device;
use crate::dynamic::{Code, SIGNED, UNSIGNED};
use crate::fused;

/// Numbers that share a scale.
pub(super) const BLOCK: usize = 256;

/// Numbers as codes, and the scale of every block of 256.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantised {
    /// One code each.
    pub codes: Vec<u8>,
    /// The largest magnitude of every block.
    pub scales: Vec<f32>,
}

/// One of the two moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MomentOrder {
    /// Average of the gradient.
    First,
    /// Average of the squared gradient.
    Second,
}

/// A parameter's running averages in eight bits; zeros before the first step.
#[derive(Clone, Debug)]
pub struct Moments8 {
    held: Held,
}

#[derive(Clone, Debug)]
enum Held {
    /// The first and the second moment.
    Host([Quantised; 2]),
    #[cfg(feature = "cube")]
    Device(Resident),
}

impl Held {
    fn nothing() -> Held {
        let nothing = || Quantised {
            codes: Vec::new(),
            scales: Vec::new(),
        };
        Held::Host([nothing(), nothing()])
    }
}

impl Moments8 {
    /// No values.
    pub fn nothing() -> Moments8 {
        Moments8 {
            held: Held::nothing(),
        }
    }

    /// Zeros for `count` numbers of a parameter on `device`.
    pub fn zeros(count: usize, device: &Device) -> Moments8 {
        let zeros = |code: &Code| Quantised {
            codes: vec![code.nearest(0.0); count],
            scales: vec![0.0; count.div_ceil(BLOCK)],
        };
        Moments8::from_host([zeros(&SIGNED), zeros(&UNSIGNED)], device)
    }

    /// The first and the second moment of a parameter on `device`.
    ///
    /// # Panics
    /// They have different lengths, or not a scale for every block.
    pub fn from_host(moments: [Quantised; 2], device: &Device) -> Moments8 {
        let count = moments[0].codes.len();
        for moment in &moments {
            let sizes = [moment.codes.len(), moment.scales.len()];
            assert_eq!(
                sizes,
                [count, count.div_ceil(BLOCK)],
                "Moments8: a code for every number, a scale for every {BLOCK}"
            );
        }
        #[cfg(feature = "cube")]
        {
            let probe = Tensor::<1>::zeros([1], (device, DType::F32));
            if device::serves(&probe) {
                let held = Held::Device(Resident::new(&device::primitive(probe), &moments));
                return Moments8 { held };
            }
        }
        assert!(
            *device == Device::flex(),
            "Moments8: no 8-bit moments on {device:?}"
        );
        Moments8 {
            held: Held::Host(moments),
        }
    }

    /// Scales of a moment of `count` numbers.
    pub fn scales_of(count: usize) -> usize {
        count.div_ceil(BLOCK)
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match &self.held {
            Held::Host([first, _]) => first.codes.len(),
            #[cfg(feature = "cube")]
            Held::Device(resident) => resident.count,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The codes of a moment, brought to the host where they are not there.
    pub fn codes(&self, order: MomentOrder) -> Cow<'_, [u8]> {
        match &self.held {
            Held::Host(moments) => Cow::Borrowed(&moments[order as usize].codes),
            #[cfg(feature = "cube")]
            Held::Device(resident) => Cow::Owned(resident.codes(order as usize)),
        }
    }

    /// The scales of a moment's blocks, brought to the host where they are not there.
    pub fn scales(&self, order: MomentOrder) -> Cow<'_, [f32]> {
        match &self.held {
            Held::Host(moments) => Cow::Borrowed(&moments[order as usize].scales),
            #[cfg(feature = "cube")]
            Held::Device(resident) => Cow::Owned(resident.scales(order as usize)),
        }
    }
}

/// Bytes of both moments of a parameter of `count` numbers.
pub fn moments8_bytes(count: usize) -> usize {
    2 * (count + 4 * count.div_ceil(BLOCK))
}

/// One step as [`adamw_step`](crate::adamw_step), with the moments rounded after it.
///
/// # Panics
/// The moments lie elsewhere than the parameter, or have another number of values; or the parameter is on the CPU in another
/// format than f32 or bf16.
pub fn adamw_8bit_step<const D: usize>(
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    moments: &mut Moments8,
    settings: &AdamW,
    step: u64,
) -> Tensor<D> {
    assert_eq!(
        parameter.shape().num_elements(),
        moments.len(),
        "adamw_8bit_step: moments for every number"
    );
    // Taken out, so that the moments have no second owner and are updated in place.
    let held = std::mem::replace(&mut moments.held, Held::nothing());
    #[cfg(feature = "cube")]
    let held = match held {
        Held::Device(resident) => {
            let (parameter, gradient) = (device::primitive(parameter), device::primitive(gradient));
            let (parameter, resident) = resident.step(parameter, gradient, settings, step);
            moments.held = Held::Device(resident);
            return device::plain(parameter);
        }
        host => host,
    };
    #[allow(irrefutable_let_patterns)] // there is another place only where devices are built in
    let Held::Host(mut host) = held else {
        unreachable!("moments on a device were updated above")
    };
    assert!(
        fused::keeps(&parameter),
        "adamw_8bit_step: moments on the CPU beside a parameter elsewhere"
    );
    let gradient = fused::values(gradient);
    let mut parameter = fused::writable(parameter);
    let g = fused::slice(&gradient);
    match parameter.dtype() {
        DType::BF16 => update::<bf16>(parameter.storage_mut(), g, &mut host, settings, step),
        _ => update::<f32>(parameter.storage_mut(), g, &mut host, settings, step),
    }
    moments.held = Held::Host(host);
    fused::from_flex(parameter)
}

fn update<P: Kept>(
    p: &mut [P],
    g: &[f32],
    moments: &mut [Quantised; 2],
    settings: &AdamW,
    step: u64,
) {
    let (beta1, beta2) = (settings.beta1 as f32, settings.beta2 as f32);
    let (new1, new2) = ((1.0 - settings.beta1) as f32, (1.0 - settings.beta2) as f32);
    let correction1 = 1.0 - settings.beta1.powf(step as f64);
    let root_correction = (1.0 - settings.beta2.powf(step as f64)).sqrt() as f32;
    let keep = (1.0 - settings.learning_rate * settings.weight_decay) as f32;
    let size = (settings.learning_rate / correction1) as f32;
    let epsilon = settings.epsilon as f32;
    let [first, second] = moments;
    let firsts = first.codes.par_chunks_mut(BLOCK).zip(&mut first.scales);
    let seconds = second.codes.par_chunks_mut(BLOCK).zip(&mut second.scales);
    p.par_chunks_mut(BLOCK)
        .zip(g.par_chunks(BLOCK))
        .zip(firsts.zip(seconds))
        .with_min_len(16)
        .enumerate()
        .for_each(|(block, ((p, g), ((codes1, scale1), (codes2, scale2))))| {
            let (mut m, mut v, mut wide) = ([0.0; BLOCK], [0.0; BLOCK], [0.0; BLOCK]);
            let wide = &mut wide[..p.len()];
            P::widen(p, wide);
            for (i, (p, &g)) in wide.iter_mut().zip(g).enumerate() {
                m[i] = beta1 * (SIGNED.value(codes1[i]) * *scale1) + new1 * g;
                v[i] = beta2 * (UNSIGNED.value(codes2[i]) * *scale2) + new2 * g * g;
                let root = v[i].sqrt() / root_correction + epsilon;
                *p = *p * keep - size * (m[i] / root);
            }
            P::narrow(wide, settings.rounding_seed, block * BLOCK, p);
            *scale1 = SIGNED.quantise(&m[..g.len()], codes1);
            *scale2 = UNSIGNED.quantise(&v[..g.len()], codes2);
        });
}
