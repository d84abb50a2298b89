//! `sysgen-train doctor`: what this machine can compute with, what is missing and how to get it, and whether the device
//! computes what it should.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;
use sysgen_core::tell;
use sysgen_model::{Need, cuda_needs, device, device_name, device_names, doing};

use crate::{golden, parity};

#[derive(Args)]
pub(crate) struct DoctorArguments {
    /// auto, cpu, cuda or cuda:1.
    #[arg(long, default_value = "auto")]
    device: String,
    /// The folder with the golden models, PyTorch's numbers beside them.
    #[arg(long, value_name = "DIR", default_value = "tests/golden")]
    golden: PathBuf,
    /// Prints JSON, one object for each figure on a line of its own.
    #[arg(long)]
    json: bool,
}

/// How far a device is from what it should compute.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    /// `op` or `golden`.
    pub(crate) check: &'static str,
    /// The op or the model.
    pub(crate) name: String,
    pub(crate) case: String,
    pub(crate) dtype: String,
    pub(crate) error: f64,
    /// The largest error that is rounding.
    pub(crate) tolerance: f64,
}

impl Figure {
    /// NaN is never fine.
    fn is_fine(&self) -> bool {
        self.error <= self.tolerance
    }

    fn to_json(&self, device: &str) -> String {
        let Figure {
            check,
            name,
            case,
            dtype,
            error,
            tolerance,
        } = self;
        let ok = self.is_fine();
        json!({"check": check, "name": name, "case": case, "dtype": dtype, "device": device, "error": error, "tolerance": tolerance, "ok": ok})
            .to_string()
    }

    fn to_text(&self) -> String {
        let verdict = if self.is_fine() { "ok" } else { "WRONG" };
        format!(
            "  {:<22} {:<34} {:<8} {:>8.1e} of {:>7.0e}  {verdict}",
            self.name, self.case, self.dtype, self.error, self.tolerance
        )
    }
}

/// Prints everything; an error when a figure is out of tolerance, or the device cannot be used.
pub(crate) fn doctor(arguments: &DoctorArguments) -> Result<()> {
    let say = |text: String| {
        if !arguments.json {
            tell(text);
        }
    };
    say("Machine".into());
    for need in machine() {
        tell_need(&need, arguments.json);
    }
    let device = device(&arguments.device)?;
    let name = device_name(&device);
    let folders = golden::folders(&arguments.golden)?;
    let (mut checked, mut wrong) = (0, 0);
    let mut show = |figures: Vec<Figure>| {
        for figure in figures {
            checked += 1;
            wrong += usize::from(!figure.is_fine());
            tell(if arguments.json {
                figure.to_json(&name)
            } else {
                figure.to_text()
            });
        }
    };
    say(format!("\nOps on {name}, against the CPU"));
    doing("checking ops");
    match parity::ops(&device) {
        Some(figures) => show(figures),
        None => say("  not checked: the CPU is what other devices are held against".into()),
    }
    say(format!("\nModels on {name}, against PyTorch"));
    doing("checking models");
    for folder in folders {
        show(golden::model(&folder, &device)?);
    }
    if wrong > 0 {
        bail!(
            "{wrong} of {checked} figures on {name} are out of tolerance; do not trust what it computes"
        );
    }
    say(format!(
        "\n{name} is fine: {checked} figures within tolerance."
    ));
    Ok(())
}

/// The host, then what CUDA needs.
fn machine() -> Vec<Need> {
    let threads = std::thread::available_parallelism().map(|threads| threads.to_string());
    let memory = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("MemTotal:"))?;
            let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
            Some(format!("{:.1} GiB", kib / f64::from(1 << 20)))
        });
    let unknown = || "this system does not tell".to_owned();
    let mut needs = vec![
        Need {
            name: "processors",
            found: threads.map_err(|_| unknown()),
        },
        Need {
            name: "memory",
            found: memory.ok_or_else(unknown),
        },
        Need {
            name: "devices",
            found: Ok(device_names().join(", ")),
        },
    ];
    needs.extend(cuda_needs());
    needs
}

fn tell_need(need: &Need, json: bool) {
    let (found, missing) = match &need.found {
        Ok(found) => (Some(found), None),
        Err(missing) => (None, Some(missing)),
    };
    if json {
        tell(json!({"check": "machine", "name": need.name, "found": found, "missing": missing}));
        return;
    }
    match (found, missing) {
        (Some(found), _) => tell(format_args!("  {:<14} {found}", need.name)),
        (None, missing) => tell(format_args!(
            "  {:<14} MISSING: {}",
            need.name,
            missing.map_or("", String::as_str)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_fine_within_its_tolerance_and_never_as_nan() {
        for (error, fine) in [(0.0, true), (1e-4, true), (2e-4, false), (f64::NAN, false)] {
            let figure = Figure {
                check: "golden",
                name: "llama".into(),
                case: "logits".into(),
                dtype: "f32".into(),
                error,
                tolerance: 1e-4,
            };
            assert_eq!(figure.is_fine(), fine, "{error}");
            assert!(figure.to_json("cpu").contains(&format!("\"ok\":{fine}")));
        }
    }
}
