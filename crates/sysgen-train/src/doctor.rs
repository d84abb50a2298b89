//! `sysgen-train doctor`: what this machine can compute with, what is missing and how to get it, and whether the device
//! computes what it should.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use clap::Args;
use serde_json::json;
use sysgen_core::tell;
use sysgen_model::{
    Device, Need, WeightDtype, cuda_needs, device, device_name, device_names, doing, has_bf16,
};
use sysgen_ops::parity::operations;

use crate::{golden, parity};

/// What `--only` calls the golden models.
const MODELS: &str = "models";

#[derive(Args)]
pub(crate) struct DoctorArguments {
    /// auto, cpu, cuda or cuda:1.
    #[arg(long, default_value = "auto")]
    device: String,
    /// The folder with the golden models, PyTorch's numbers beside them.
    #[arg(long, value_name = "DIR", default_value = "tests/golden")]
    golden: PathBuf,
    /// Checks only these ops, by their names in `sysgen_ops::parity`; `models`: only the golden models.
    #[arg(long, value_name = "OP", value_delimiter = ',')]
    only: Vec<String>,
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
        format!(
            "  {:<22} WRONG: {}, {}: {:.1e}, at most {:.0e}",
            self.name, self.case, self.dtype, self.error, self.tolerance
        )
    }

    /// How much of the tolerance is used; a figure that must be exact uses none.
    fn share(&self) -> f64 {
        match self.tolerance > 0.0 {
            true => self.error / self.tolerance,
            false => 0.0,
        }
    }
}

/// A line for each op or model whose figures are fine, and one for each figure that is not.
fn to_text(figures: &[Figure]) -> Vec<String> {
    let mut lines = Vec::new();
    for group in figures.chunk_by(|a, b| a.name == b.name) {
        let wrong: Vec<String> = group
            .iter()
            .filter(|f| !f.is_fine())
            .map(Figure::to_text)
            .collect();
        let worst = group.iter().max_by(|a, b| a.share().total_cmp(&b.share()));
        if let (true, Some(worst)) = (wrong.is_empty(), worst) {
            lines.push(format!(
                "  {:<22} ok: {} figures, the worst at {:.0} % of its tolerance ({})",
                worst.name,
                group.len(),
                100.0 * worst.share(),
                worst.case
            ));
        }
        lines.extend(wrong);
    }
    lines
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
    let only = &arguments.only;
    for name in only {
        ensure!(
            name == MODELS || operations().any(|op| op == name),
            "--only {name} is not known; use {MODELS}, {}",
            operations().collect::<Vec<_>>().join(", ")
        );
    }
    let asked = |name: &str| only.is_empty() || only.iter().any(|asked| asked == name);
    let (mut checked, mut wrong) = (0, 0);
    let mut show = |figures: Vec<Figure>| {
        checked += figures.len();
        wrong += figures.iter().filter(|figure| !figure.is_fine()).count();
        let lines = match arguments.json {
            true => figures.iter().map(|figure| figure.to_json(&name)).collect(),
            false => to_text(&figures),
        };
        for line in lines {
            tell(line);
        }
    };
    if operations().any(asked) {
        say(format!("\nOps on {name}, against the CPU"));
        doing("checking ops");
        if device == Device::flex() {
            say("  not checked: the CPU is what other devices are held against".into());
        } else {
            // One after the other, so that what was found is told also where the time runs out.
            for op in operations().filter(|op| asked(op)) {
                show(parity::op(op, &device));
            }
        }
    }
    if asked(MODELS) {
        say(format!("\nModels on {name}, against PyTorch"));
        doing("checking models");
        for folder in folders {
            show(golden::model(&folder, &device, WeightDtype::F32)?);
            if device != Device::flex() && has_bf16(&device) {
                show(golden::model(&folder, &device, WeightDtype::Bf16)?);
            }
        }
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

    fn figure(name: &str, case: &str, error: f64) -> Figure {
        Figure {
            check: "golden",
            name: name.into(),
            case: case.into(),
            dtype: "f32".into(),
            error,
            tolerance: 1e-4,
        }
    }

    #[test]
    fn a_figure_is_fine_within_its_tolerance_and_never_as_nan() {
        for (error, fine) in [(0.0, true), (1e-4, true), (2e-4, false), (f64::NAN, false)] {
            let figure = figure("llama", "logits", error);
            assert_eq!(figure.is_fine(), fine, "{error}");
            assert!(figure.to_json("cpu").contains(&format!("\"ok\":{fine}")));
        }
    }

    #[test]
    fn what_is_fine_is_one_line_and_each_wrong_figure_another() {
        let said = to_text(&[
            figure("llama", "logits", 1e-5),
            figure("llama", "loss", 5e-5),
            figure("phi", "logits", 0.0),
            figure("phi", "loss", f64::NAN),
            figure("phi", "greedy", 2e-4),
        ]);
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[0].contains("llama") && said[0].contains("2 figures, the worst at 50 %"));
        assert!(said[0].ends_with("(loss)"), "{said:?}");
        assert!(said[1].contains("WRONG: loss") && said[2].contains("WRONG: greedy"));
    }
}
