//! The gradient of an embedding table: rows are added to it where their tokens are.

mod cpu;

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};

use crate::fused;

/// `table[ids[i]] += rows[i]`, in the order of `i`; in place when nobody else holds the table.
///
/// # Shapes
/// `table`: `[vocab, dim]`, `ids`: `count` row numbers below `vocab`, `rows`: `[count, dim]`, all without autodiff; the rows may
/// be narrower numbers than the table's
pub fn add_rows(table: Tensor<2>, ids: &[u32], rows: Tensor<2>) -> Tensor<2> {
    let [vocab, dim] = table.dims();
    assert_eq!(
        rows.dims(),
        [ids.len(), dim],
        "add_rows: rows [count, dim] for count ids and a table [vocab, dim]"
    );
    assert!(
        ids.iter().all(|&id| (id as usize) < vocab),
        "add_rows: an id is outside the table of {vocab} rows"
    );
    if !fused::serves(&table) {
        return reference(table, ids, rows);
    }
    let mut table = fused::writable(table);
    let rows = fused::values(rows);
    cpu::add_rows(table.storage_mut(), dim, ids, fused::slice(&rows));
    fused::from_flex(table)
}

/// [`add_rows`] in plain Burn tensors.
pub fn reference(table: Tensor<2>, ids: &[u32], rows: Tensor<2>) -> Tensor<2> {
    let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let ids = TensorData::new(ids, [rows.dims()[0]]);
    let ids = Tensor::<1, Int>::from_data(ids, &table.device());
    let rows = rows.cast(table.dtype());
    table.select_assign(0, ids, rows, IndexingUpdateOp::Add)
}
