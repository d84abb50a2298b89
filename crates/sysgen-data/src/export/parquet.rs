//! Parquet by column, without Arrow: the messages and most of the provenance. Seeds and token counts
//! stay in `dataset.jsonl`.

use std::io::Write;
use std::sync::Arc;

use anyhow::Result;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DataType, FloatType, Int32Type, Int64Type,
};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use crate::dataset::Line;
use crate::export::{Exported, has_context};
use crate::open::DataSet;

/// Rows of one row group: enough to compress well, little enough to hold in memory.
const ROW_GROUP: usize = 8192;

/// The columns in the order they are written; WEIGHT stands where messages may have one.
const SCHEMA: &str = "message dataset {
    required binary id (UTF8);
    required group messages (LIST) { repeated group list { required group element {
        required binary role (UTF8);
        required binary content (UTF8);
        WEIGHT
    } } }
    required binary source (UTF8);
    required int64 line;
    required group tags (LIST) { repeated group list { required group element {
        required binary tag (UTF8);
        required binary label (UTF8);
        optional float margin;
        required boolean kept;
    } } }
    optional binary annotated (UTF8);
    required group original_answers (LIST) { repeated group list { required binary element (UTF8); } }
    optional binary model (UTF8);
    optional binary prompt_hash (UTF8);
}";

pub(crate) fn write(
    data_set: &DataSet,
    file: &mut dyn Write,
    exported: &mut Exported,
) -> Result<()> {
    // A column of nothing but nulls would only be in the way.
    let mut weights = false;
    data_set.for_each_chunk(|lines| {
        weights |= lines.iter().any(has_context);
        Ok(())
    })?;
    let weight = if weights {
        "optional int32 weight;"
    } else {
        ""
    };
    let schema = parse_message_type(&SCHEMA.replace("WEIGHT", weight))?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .build();
    // The file cannot be handed to the writer, which wants to move it between threads; what has
    // gathered in this buffer goes to the file after each row group.
    let mut writer = SerializedFileWriter::new(Vec::new(), Arc::new(schema), Arc::new(properties))?;
    let mut waiting: Vec<Line> = Vec::new();
    let mut flush = |waiting: &mut Vec<Line>, writer: &mut SerializedFileWriter<Vec<u8>>| {
        let mut group = writer.next_row_group()?;
        write_columns(&mut group, waiting, weights)?;
        group.close()?;
        writer.flush()?;
        file.write_all(&std::mem::take(writer.inner_mut()))?;
        waiting.clear();
        Ok::<(), anyhow::Error>(())
    };
    let damaged = data_set.for_each_chunk(|lines| {
        lines.iter().for_each(|line| exported.count(line));
        waiting.extend(lines);
        if waiting.len() >= ROW_GROUP {
            flush(&mut waiting, &mut writer)?;
        }
        Ok(())
    })?;
    exported.damaged = damaged;
    if !waiting.is_empty() {
        flush(&mut waiting, &mut writer)?;
    }
    file.write_all(&writer.into_inner()?)?;
    Ok(())
}

type Group<'a> = SerializedRowGroupWriter<'a, Vec<u8>>;

fn write_columns(group: &mut Group<'_>, lines: &[Line], weights: bool) -> Result<()> {
    let texts = |of: fn(&Line) -> &str| lines.iter().map(of).map(text).collect::<Vec<_>>();
    plain::<ByteArrayType>(group, &texts(|line| &line.sysgen.id))?;
    let messages = |line: &Line| line.messages.clone();
    list::<ByteArrayType, _>(
        group,
        lines,
        messages,
        |turn| Some(text(turn.role.as_str())),
        false,
    )?;
    list::<ByteArrayType, _>(
        group,
        lines,
        messages,
        |turn| Some(text(&turn.content)),
        false,
    )?;
    if weights {
        list::<Int32Type, _>(
            group,
            lines,
            messages,
            |turn| turn.weight.map(i32::from),
            true,
        )?;
    }
    plain::<ByteArrayType>(group, &texts(|line| &line.sysgen.source))?;
    let numbers: Vec<i64> = lines.iter().map(|line| line.sysgen.line as i64).collect();
    plain::<Int64Type>(group, &numbers)?;
    let tags = |line: &Line| line.sysgen.tags.clone();
    list::<ByteArrayType, _>(
        group,
        lines,
        tags,
        |verdict| Some(text(verdict.tag.name())),
        false,
    )?;
    list::<ByteArrayType, _>(
        group,
        lines,
        tags,
        |verdict| Some(text(verdict.label.name())),
        false,
    )?;
    list::<FloatType, _>(group, lines, tags, |verdict| verdict.margin, true)?;
    list::<BoolType, _>(group, lines, tags, |verdict| Some(verdict.kept), false)?;
    optional(group, lines, |line| line.sysgen.annotated.as_deref())?;
    let originals = |line: &Line| line.originals().to_vec();
    list::<ByteArrayType, _>(group, lines, originals, |answer| Some(text(answer)), false)?;
    optional(group, lines, |line| line.sysgen.model.as_deref())?;
    optional(group, lines, |line| line.sysgen.prompt_hash.as_deref())
}

fn text(text: &str) -> ByteArray {
    ByteArray::from(text.as_bytes().to_vec())
}

/// A column with a value in every row.
fn plain<T: DataType>(group: &mut Group<'_>, values: &[T::T]) -> Result<()> {
    column::<T>(group, values, None, None)
}

/// A column of texts that may be absent.
fn optional(group: &mut Group<'_>, lines: &[Line], of: fn(&Line) -> Option<&str>) -> Result<()> {
    let values: Vec<ByteArray> = lines.iter().filter_map(of).map(text).collect();
    let definition: Vec<i16> = lines
        .iter()
        .map(|line| i16::from(of(line).is_some()))
        .collect();
    column::<ByteArrayType>(group, &values, Some(&definition), None)
}

/// A column inside a list. Dremel's levels: the first item of a row has repetition 0, its others 1;
/// definition is 0 for an empty list, 1 for an item, one more for the value of an optional field.
fn list<T: DataType, I>(
    group: &mut Group<'_>,
    lines: &[Line],
    items: impl Fn(&Line) -> Vec<I>,
    value: impl Fn(&I) -> Option<T::T>,
    is_optional: bool,
) -> Result<()> {
    let (mut values, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
    for line in lines {
        let items = items(line);
        if items.is_empty() {
            definition.push(0);
            repetition.push(0);
        }
        for (i, item) in items.iter().enumerate() {
            let value = value(item);
            definition.push(1 + i16::from(is_optional && value.is_some()));
            repetition.push(i16::from(i > 0));
            values.extend(value);
        }
    }
    column::<T>(group, &values, Some(&definition), Some(&repetition))
}

fn column<T: DataType>(
    group: &mut Group<'_>,
    values: &[T::T],
    definition: Option<&[i16]>,
    repetition: Option<&[i16]>,
) -> Result<()> {
    let mut column = group
        .next_column()?
        .expect("the schema has a column for each of these calls");
    column
        .typed::<T>()
        .write_batch(values, definition, repetition)?;
    column.close()?;
    Ok(())
}
