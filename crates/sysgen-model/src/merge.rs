//! A model and its adapters as one model, parameter by parameter: what is merged exists in f32, on the host, only while it
//! is written or compared. Nothing is computed on the device of the weights, which may have no room left.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device, Tensor};
use sysgen_ops::{Adapter, LinearWeight, merged};

use crate::adapter_file::compare_adapter;
use crate::checkpoint::Checkpoint;
use crate::compare::compare;
use crate::config::StoredDtype;
use crate::copy::place;
use crate::decoder::Decoder;
use crate::names::entries;
use crate::parameter::{Weight, WeightDtype};
use crate::save::{self, Content, ExportDtype};
use crate::weights::Kept;

/// A projection whose adapter has been merged into it, all on the host.
pub struct Merge {
    /// Its parameter.
    pub name: String,
    /// What the adapter was trained beside; of a model in four bits, the numbers before they were quantised.
    pub weight: LinearWeight,
    /// What was trained.
    pub adapter: Adapter,
    /// Both in one, `[out, in]` in f32.
    pub merged: Tensor<2>,
}

impl Decoder {
    /// As [`Decoder::save`], with adapters merged into the weights. `look` sees every merged projection before it is written.
    /// Weights in four bits are read anew from `like`, which then has to be the model they come from.
    ///
    /// # Errors
    /// As [`Decoder::save`], those of `look`, and weights in four bits without the model they come from.
    pub fn save_merged(
        &self,
        dir: &Path,
        dtype: ExportDtype,
        like: Option<&Path>,
        look: &dyn Fn(&Merge) -> Result<()>,
    ) -> Result<()> {
        let whole = self.whole(like)?;
        let contents = self.contents(whole.as_ref(), look);
        save::save_contents(&self.config, &contents, dir, dtype, like)
    }

    /// Compares what [`Decoder::save_merged`] has written to `dir` with this model, byte by byte, one parameter at a time.
    ///
    /// # Errors
    /// A file cannot be read, or what differs.
    pub fn compare_saved(&self, dir: &Path, dtype: ExportDtype, like: Option<&Path>) -> Result<()> {
        let whole = self.whole(like)?;
        let contents = self.contents(whole.as_ref(), &|_| Ok(()));
        compare(&self.config, &contents, dir, dtype)
    }

    /// Compares what [`Decoder::save_adapter`] has written to `dir` with the adapters of this model, byte by byte.
    ///
    /// # Errors
    /// A file cannot be read, or what differs.
    pub fn compare_saved_adapter(&self, dir: &Path, dtype: StoredDtype) -> Result<()> {
        compare_adapter(self, dir, dtype)
    }

    /// The weights of a model in four bits as they were before.
    fn whole(&self, like: Option<&Path>) -> Result<Option<Checkpoint>> {
        if !self.is_nf4() {
            return Ok(None);
        }
        let from = like.context("weights in four bits are merged into those they come from")?;
        let checkpoint = Checkpoint::open(from)?;
        checkpoint.check(&self.config)?;
        Ok(Some(checkpoint))
    }

    /// Every parameter, made when its turn comes: that of the file where there is one, merged where it has an adapter.
    fn contents<'a>(
        &self,
        whole: Option<&'a Checkpoint>,
        look: &'a dyn Fn(&Merge) -> Result<()>,
    ) -> Vec<Content<'a>> {
        let kept = self.weights.clone().into_kept();
        let named = entries(&self.config).into_iter().zip(kept);
        named
            .map(|(entry, kept)| Content {
                name: entry.name.clone(),
                shape: entry.shape.clone(),
                kept: kept.stored_dtype(),
                values: Box::new(move || {
                    let host = Device::flex();
                    let stored = whole.map(|whole| {
                        whole.weight(&entry.name, &entry.shape, WeightDtype::Auto, &host)
                    });
                    match (kept.clone(), stored) {
                        (Kept::Matrix(weight, Some(adapter)), stored) => {
                            let weight = match stored {
                                Some(stored) => LinearWeight::Dense(stored.matrix()),
                                None => weight.to_device(&host),
                            };
                            merge(entry.name.clone(), weight, adapter, look)
                        }
                        (_, Some(stored)) => Ok(stored.to_vec()),
                        (kept, None) => Ok(kept.into_weight().to_vec()),
                    }
                }),
            })
            .collect()
    }
}

fn merge(
    name: String,
    weight: LinearWeight,
    mut adapter: Adapter,
    look: &dyn Fn(&Merge) -> Result<()>,
) -> Result<Vec<f32>> {
    let host = Device::flex();
    for factor in [&mut adapter.a, &mut adapter.b] {
        place(factor, &host);
    }
    let magnitude = adapter.magnitude.iter_mut();
    magnitude.for_each(|magnitude| place(magnitude, &host));
    let merge = Merge {
        name,
        merged: merged(&weight, &adapter),
        weight,
        adapter,
    };
    ensure!(
        merge.merged.dtype() == DType::F32,
        "{} was not merged in f32",
        merge.name
    );
    look(&merge)?;
    let Merge { merged, .. } = merge;
    Ok(Weight::Matrix(merged).to_vec())
}
