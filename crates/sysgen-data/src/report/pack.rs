//! Data inside a page: gzip, then base64, in elements that a browser does not run. Base64 has no `<`, so
//! nothing in a row can end its element.

use std::io::{self, Write};

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use rayon::prelude::*;

use crate::dataset::Line;

/// Cuts lines into chunks of one size, whatever the sizes they come in.
pub(crate) struct Packer {
    rows_per_chunk: usize,
    waiting: Vec<Line>,
    chunks: usize,
}

impl Packer {
    pub(crate) fn new(rows_per_chunk: usize) -> Packer {
        Packer {
            rows_per_chunk,
            waiting: Vec::new(),
            chunks: 0,
        }
    }

    pub(crate) fn add(&mut self, lines: Vec<Line>, file: &mut dyn Write) -> Result<()> {
        self.waiting.extend(lines);
        let whole = self.waiting.len() - self.waiting.len() % self.rows_per_chunk;
        let rest = self.waiting.split_off(whole);
        self.write(file)?;
        self.waiting = rest;
        Ok(())
    }

    pub(crate) fn finish(mut self, file: &mut dyn Write) -> Result<()> {
        self.write(file)
    }

    fn write(&mut self, file: &mut dyn Write) -> Result<()> {
        let chunks: Vec<io::Result<String>> = self
            .waiting
            .par_chunks(self.rows_per_chunk)
            .map(|lines| packed(&serde_json::to_vec(lines)?))
            .collect();
        for chunk in chunks {
            embedded(file, &format!("chunk-{}", self.chunks), &chunk?)?;
            self.chunks += 1;
        }
        self.waiting.clear();
        Ok(())
    }
}

/// An element with packed data, found by its id.
pub(crate) fn embedded(file: &mut dyn Write, id: &str, data: &str) -> io::Result<()> {
    writeln!(
        file,
        "<script type=\"application/gzip\" id=\"{id}\">{data}</script>"
    )
}

pub(crate) fn packed(bytes: &[u8]) -> io::Result<String> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes)?;
    Ok(STANDARD.encode(encoder.finish()?))
}
