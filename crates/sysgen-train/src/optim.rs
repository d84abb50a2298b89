//! AdamW over all parameters of a model, and the arithmetic on their gradients: sums, the global norm, the clip.
//!
//! Moments are f32; unless asked otherwise, only parameters with two or more dimensions decay (embeddings and head included,
//! norms and biases not), as `transformers.Trainer` and the golden curves have it.

use sysgen_core::config::Optim;
use sysgen_core::hash::seed_from;
use sysgen_model::{Parameter, Weight};
use sysgen_ops::{
    AdamW, Moments, Moments8, adamw_8bit_step, adamw_step, flat, squared_norm, squared_norms,
};

/// A parameter with fewer numbers keeps its moments in f32 with `adamw_8bit`: norms and biases, which weigh nothing and feel
/// rounding most (bitsandbytes' `min_8bit_size`).
pub const LEAST_8BIT: usize = 4096;

/// Added to the norm before dividing (`torch.nn.utils.clip_grad_norm_`).
const CLIP_EPSILON: f64 = 1e-6;

/// The running averages of one parameter.
#[derive(Clone, Debug)]
pub enum State {
    /// Of a norm weight or a bias.
    Vector(Moments<1>),
    /// Of a matrix.
    Matrix(Moments<2>),
    /// Of either, in eight bits.
    Quantised(Moments8),
}

impl State {
    /// Whether the moments of a parameter of `count` numbers are in eight bits.
    pub fn is_quantised(optim: Optim, count: usize) -> bool {
        optim == Optim::Adamw8bit && count >= LEAST_8BIT
    }

    /// Zeros for a parameter.
    pub fn zeros(optim: Optim, parameter: &Parameter) -> State {
        let count = parameter.tensor.len();
        match &parameter.tensor {
            weight if State::is_quantised(optim, count) => {
                State::Quantised(Moments8::zeros(count, &weight.device()))
            }
            Weight::Vector(tensor) => State::Vector(Moments::zeros_like(tensor)),
            Weight::Matrix(tensor) => State::Matrix(Moments::zeros_like(tensor)),
        }
    }
}

/// The optimizer and its state, in the order of the model's parameters.
#[derive(Clone, Debug)]
pub struct Optimizer {
    /// The settings of a step; the learning rate and the decay are filled in for each step and parameter.
    pub settings: AdamW,
    /// One for each parameter.
    pub states: Vec<State>,
    /// Updates applied so far; skipped steps do not count.
    pub updates: u64,
    /// Start of the random bits that round parameters in bf16.
    pub seed: u64,
    /// Norms and biases decay too, as with `torch.optim.AdamW(model.parameters())`.
    pub decay_vectors: bool,
}

impl Optimizer {
    /// Zero moments for these parameters.
    pub fn new(parameters: &[Parameter], settings: AdamW) -> Optimizer {
        Optimizer::of(Optim::Adamw, parameters, settings)
    }

    /// Zero moments of this kind for these parameters.
    pub fn of(optim: Optim, parameters: &[Parameter], settings: AdamW) -> Optimizer {
        let zeros = parameters.iter();
        let zeros = zeros.map(|parameter| State::zeros(optim, parameter));
        Optimizer {
            settings,
            states: zeros.collect(),
            updates: 0,
            seed: 0,
            decay_vectors: false,
        }
    }

    /// One update: each gradient times `scale`, at this learning rate. A parameter without a gradient stays as it is.
    pub fn update(
        &mut self,
        parameters: Vec<Parameter>,
        gradients: GradientSum,
        scale: f64,
        learning_rate: f64,
    ) -> Vec<Parameter> {
        self.updates += 1;
        let mut gradients = gradients.sums.into_iter();
        let updated = parameters.into_iter().enumerate();
        updated
            .map(|(place, Parameter { name, tensor })| {
                let tensor = match gradients.next().flatten() {
                    None => tensor,
                    Some(gradient) => self.apply(place, tensor, gradient, scale, learning_rate),
                };
                Parameter { name, tensor }
            })
            .collect()
    }

    /// The share of one parameter, that at `place`, in the update that `updates` counts last.
    ///
    /// # Panics
    /// Parameter, gradient and state differ in rank.
    pub fn apply(
        &mut self,
        place: usize,
        parameter: Weight,
        gradient: Weight,
        scale: f64,
        learning_rate: f64,
    ) -> Weight {
        let decays = self.decay_vectors || matches!(parameter, Weight::Matrix(_));
        let settings = AdamW {
            learning_rate,
            weight_decay: if decays {
                self.settings.weight_decay
            } else {
                0.0
            },
            rounding_seed: self.rounding_seed(place),
            ..self.settings
        };
        let updates = self.updates;
        // Taken out, so that the moments have no second owner and are updated in place.
        let nothing = State::Quantised(Moments8::nothing());
        let state = std::mem::replace(&mut self.states[place], nothing);
        let (parameter, state) = match (parameter, gradient, state) {
            (Weight::Vector(tensor), Weight::Vector(gradient), State::Vector(moments)) => {
                let gradient = scaled(gradient, scale);
                let (tensor, moments) = adamw_step(tensor, gradient, moments, &settings, updates);
                (Weight::Vector(tensor), State::Vector(moments))
            }
            (Weight::Matrix(tensor), Weight::Matrix(gradient), State::Matrix(moments)) => {
                let gradient = scaled(gradient, scale);
                let (tensor, moments) = adamw_step(tensor, gradient, moments, &settings, updates);
                (Weight::Matrix(tensor), State::Matrix(moments))
            }
            (Weight::Vector(tensor), Weight::Vector(gradient), State::Quantised(mut moments)) => {
                let gradient = scaled(gradient, scale);
                let tensor = adamw_8bit_step(tensor, gradient, &mut moments, &settings, updates);
                (Weight::Vector(tensor), State::Quantised(moments))
            }
            (Weight::Matrix(tensor), Weight::Matrix(gradient), State::Quantised(mut moments)) => {
                let gradient = scaled(gradient, scale);
                let tensor = adamw_8bit_step(tensor, gradient, &mut moments, &settings, updates);
                (Weight::Matrix(tensor), State::Quantised(moments))
            }
            _ => panic!("parameter {place}, its gradient and its optimizer state differ in rank"),
        };
        self.states[place] = state;
        parameter
    }

    /// A function of seed, update and parameter, so that a run that is gone on with rounds as one that was not stopped.
    fn rounding_seed(&self, place: usize) -> u32 {
        let parts = [self.seed, self.updates, place as u64].map(|part| part.to_string());
        seed_from(&["stochastic rounding", &parts[0], &parts[1], &parts[2]]) as u32
    }
}

fn scaled<const D: usize>(
    gradient: burn::tensor::Tensor<D>,
    scale: f64,
) -> burn::tensor::Tensor<D> {
    if scale == 1.0 {
        gradient
    } else {
        gradient.mul_scalar(scale)
    }
}

/// The sum of the gradients of several micro-batches, in f32, in the order of the model's parameters.
#[derive(Clone, Debug, Default)]
pub struct GradientSum {
    sums: Vec<Option<Weight>>,
}

impl GradientSum {
    /// Adds the gradient of the parameter at `place` of the model's list.
    pub fn add(&mut self, place: usize, gradient: Weight) {
        if self.sums.len() <= place {
            self.sums.resize_with(place + 1, || None);
        }
        let sum = &mut self.sums[place];
        *sum = Some(match (sum.take(), gradient) {
            (None, gradient) => gradient,
            (Some(Weight::Vector(sum)), Weight::Vector(gradient)) => Weight::Vector(sum + gradient),
            (Some(Weight::Matrix(sum)), Weight::Matrix(gradient)) => Weight::Matrix(sum + gradient),
            _ => panic!("gradients of two micro-batches differ in rank"),
        });
    }

    /// The L2 norm over all gradients together.
    pub fn global_norm(&self) -> f64 {
        let gradients: Vec<&Weight> = self.sums.iter().flatten().collect();
        let squares = squared_norms(gradients.into_iter().map(|gradient| match gradient {
            Weight::Vector(gradient) => flat(gradient),
            Weight::Matrix(gradient) => flat(gradient),
        }));
        squares.iter().sum::<f64>().sqrt()
    }
}

/// The sum of a gradient's squares.
pub fn square(gradient: &Weight) -> f64 {
    match gradient {
        Weight::Vector(gradient) => squared_norm(gradient),
        Weight::Matrix(gradient) => squared_norm(gradient),
    }
}

/// What gradients of this global norm are multiplied with: `min(1, max_norm / (norm + 1e-6))`; 1 when `max_norm` is 0.
pub fn clip_coefficient(norm: f64, max_norm: f64) -> f64 {
    if max_norm == 0.0 {
        1.0
    } else {
        (max_norm / (norm + CLIP_EPSILON)).min(1.0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use sysgen_model::Device;

    #[test]
    fn norms_decay_only_when_asked_to() {
        for (decay_vectors, norm) in [(false, 1.0), (true, 0.5)] {
            let device = Device::flex();
            let weight = |shape: &[usize]| Weight::from_values(vec![1.0; 2], shape, &device);
            let parameters = [("norm", vec![2]), ("matrix", vec![1, 2])].map(|(name, shape)| {
                let name = name.to_owned();
                let tensor = weight(&shape);
                Parameter { name, tensor }
            });
            let settings = AdamW {
                learning_rate: 0.5,
                beta1: 0.9,
                beta2: 0.95,
                epsilon: 1e-8,
                weight_decay: 1.0,
                rounding_seed: 0,
            };
            let mut optimizer = Optimizer::new(&parameters, settings);
            optimizer.decay_vectors = decay_vectors;
            let zeros = [vec![2], vec![1, 2]];
            let zeros = zeros.map(|shape| Weight::from_values(vec![0.0; 2], &shape, &device));
            let gradients = GradientSum {
                sums: zeros.into_iter().map(Some).collect(),
            };
            let updated = optimizer.update(parameters.into(), gradients, 1.0, 0.5);
            assert_eq!(updated[0].tensor.to_vec(), [norm; 2]);
            assert_eq!(updated[1].tensor.to_vec(), [0.5; 2]);
        }
    }

    #[test]
    fn every_step_of_every_parameter_is_rounded_by_bits_of_its_own() {
        let settings = AdamW {
            learning_rate: 0.5,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.0,
            rounding_seed: 0,
        };
        let mut optimizer = Optimizer::new(&[], settings);
        let mut seeds = std::collections::BTreeSet::new();
        for (seed, updates) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)] {
            (optimizer.seed, optimizer.updates) = (seed, updates);
            for place in 0..3 {
                let found = optimizer.rounding_seed(place);
                assert_eq!(found, optimizer.rounding_seed(place));
                seeds.insert(found);
            }
        }
        // The same bits at every step would move a weight the same way each time, and not be right on average.
        assert_eq!(seeds.len(), 18);
    }

    #[test]
    fn the_clip_only_ever_shrinks() {
        assert_eq!(clip_coefficient(0.5, 1.0), 1.0);
        assert!((clip_coefficient(4.0, 1.0) - 1.0 / 4.000001).abs() < 1e-15);
        assert_eq!(clip_coefficient(4.0, 0.0), 1.0);
        assert_eq!(clip_coefficient(0.0, 1.0), 1.0);
    }
}
