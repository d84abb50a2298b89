//! Sizes of memory and files as people write and read them.

/// Bytes as people read them.
pub fn readable(bytes: u64) -> String {
    let of = |shift: u32| bytes as f64 / (1u64 << shift) as f64;
    match bytes {
        0..0x10_0000 => format!("{:.0} KiB", of(10)),
        0x10_0000..0x4000_0000 => format!("{:.0} MiB", of(20)),
        _ => format!("{:.1} GiB", of(30)),
    }
}

/// A size such as `80GiB`, `24GB` or `900MiB`, in bytes.
///
/// # Errors
/// What a size looks like.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let unit = match unit.trim() {
        "GiB" => 1u64 << 30,
        "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "MB" => 1_000_000,
        _ => {
            return Err(format!(
                "`{text}` is not a size; write 80GiB, 24GB or 900MiB"
            ));
        }
    };
    let number: f64 = number
        .parse()
        .map_err(|_| format!("`{text}` is not a size; write 80GiB, 24GB or 900MiB"))?;
    Ok((number * unit as f64) as u64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse_bytes("80GiB"), Ok(80 * GIB));
        assert_eq!(parse_bytes("1.5 MB"), Ok(1_500_000));
        assert!(parse_bytes("80").unwrap_err().contains("80GiB"));
        assert_eq!(readable(3 * GIB / 2), "1.5 GiB");
        assert_eq!(readable(GIB / 4), "256 MiB");
        assert_eq!(readable(5 << 10), "5 KiB");
    }
}
