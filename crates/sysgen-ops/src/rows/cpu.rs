//! `add_rows` on the CPU.

use rayon::prelude::*;

/// Row numbers that one task looks through.
const BAND: usize = 64;

/// Bands of the table are independent; inside one, rows are added in the order in which they come.
pub(super) fn add_rows(table: &mut [f32], dim: usize, ids: &[u32], rows: &[f32]) {
    if dim == 0 {
        return;
    }
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|&index| ids[index]); // stable
    let runs: Vec<&[usize]> = order
        .chunk_by(|&a, &b| ids[a] as usize / BAND == ids[b] as usize / BAND)
        .collect();
    let mut bands: Vec<Option<&mut [f32]>> = table.chunks_mut(BAND * dim).map(Some).collect();
    let tasks: Vec<(&[usize], &mut [f32])> = runs
        .into_iter()
        .map(|run| {
            let band = bands[ids[run[0]] as usize / BAND].take();
            (run, band.expect("every band belongs to one run"))
        })
        .collect();
    tasks.into_par_iter().for_each(|(run, band)| {
        for &index in run {
            let target = ids[index] as usize % BAND * dim;
            let row = &rows[index * dim..][..dim];
            band[target..target + dim]
                .iter_mut()
                .zip(row)
                .for_each(|(sum, x)| *sum += x);
        }
    });
}
