//! `sysgen-train bench --matmul`: matrix products alone, to see how far a step is from what its products cost.

use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Distribution, Tensor};
use serde_json::{Value, json};
use sysgen_core::measure::{least, median, rounded};
use sysgen_model::{Device, device_name};
use sysgen_ops::{LinearWeight, Packed};

/// Products launched before the clock is read.
const LAUNCHES: usize = 4;
const REPEATS: usize = 5;

/// `[m, k] · [n, k]ᵀ`, as a linear layer multiplies m tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Product {
    m: usize,
    k: usize,
    n: usize,
}

impl FromStr for Product {
    type Err = String;

    fn from_str(text: &str) -> Result<Product, String> {
        let sizes: Option<Vec<usize>> = text
            .split('x')
            .map(|size| size.parse().ok().filter(|size| *size > 0))
            .collect();
        match sizes.as_deref() {
            Some(&[m, k, n]) => Ok(Product { m, k, n }),
            _ => Err(format!(
                "`{text}` must be MxKxN, for example 4096x4096x14336"
            )),
        }
    }
}

/// Number formats a product is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    F32,
    Bf16,
}

/// A number format by the name that `config.json` and PyTorch use.
pub(crate) fn dtype_name(dtype: DType) -> String {
    match dtype {
        DType::F32 => "float32".into(),
        DType::F16 => "float16".into(),
        DType::BF16 => "bfloat16".into(),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// The figures of one product; `packed`: with the weight laid out as a model that only answers has it.
pub(crate) fn measure(
    product: Product,
    format: Format,
    packed: bool,
    device: &Device,
) -> Result<Value> {
    let dtype = match format {
        Format::F32 => DType::F32,
        Format::Bf16 => DType::BF16,
    };
    let name = dtype_name(dtype);
    ensure!(
        device.supports_dtype(dtype),
        "{} does not compute in {name}",
        device_name(device)
    );
    let Product { m, k, n } = product;
    let normal = Distribution::Normal(0.0, 1.0);
    // Beside packed weights x is in f32, whatever they are kept in.
    let x = Tensor::<2>::random([m, k], normal, device);
    let x = if packed { x } else { x.cast(dtype) };
    let weight = Tensor::<2>::random([n, k], normal, device).cast(dtype);
    let weight =
        match packed {
            true => LinearWeight::Packed(Packed::pack(&weight).with_context(|| {
                format!("--packed: {} has no packed weights", device_name(device))
            })?),
            false => LinearWeight::Dense(weight),
        };
    // Nothing is left out as unused: without fusion an operation runs when it is called. One output lives at a time.
    let run = |launches: usize| -> Result<f64> {
        device.sync()?;
        let started = Instant::now();
        for _ in 0..launches {
            weight.project(x.clone(), None);
        }
        device.sync()?;
        Ok(started.elapsed().as_secs_f64() / launches as f64)
    };
    run(2)?; // kernels are compiled and chosen
    let seconds = (0..REPEATS)
        .map(|_| run(LAUNCHES))
        .collect::<Result<Vec<f64>>>()?;
    let tflops = |seconds: f64| rounded(2.0 * (m * k * n) as f64 / seconds / 1e12, 4);
    Ok(json!({
        "device": device_name(device),
        "matmul": [m, k, n],
        "dtype": name,
        "packed": packed,
        "seconds_median": median(&seconds),
        "tflops_median": tflops(median(&seconds)),
        "tflops_best": tflops(least(&seconds)),
    }))
}

/// The same for a person.
pub(crate) fn line(figures: &Value) -> String {
    let size = |at: usize| figures["matmul"][at].to_string();
    format!(
        "{} x {} x {} {} on {}: {} TFLOP/s, best {}",
        size(0),
        size(1),
        size(2),
        figures["dtype"].as_str().unwrap_or_default(),
        figures["device"].as_str().unwrap_or_default(),
        figures["tflops_median"],
        figures["tflops_best"]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_three_sizes() {
        assert_eq!("2x3x4".parse(), Ok(Product { m: 2, k: 3, n: 4 }));
        for wrong in ["2x3", "2x3x", "2x0x4", "axbxc", ""] {
            assert!(wrong.parse::<Product>().is_err(), "{wrong}");
        }
    }
}
