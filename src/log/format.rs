//! The file `format` of a log directory: what was fixed when it was created, and how often it was opened.
//!
//! Text, so that a person can read it:
//!
//! ```text
//! forebay log format 1
//! partitions 8
//! incarnation 3
//! crc32c 0a1b2c3d
//! ```
//!
//! The checksum covers the lines above it. The file is written last when a log is created: where it exists, every
//! partition has a segment.

use std::fmt::Write;

use super::header::crc32c;

pub(super) const FILE: &str = "format";
pub(super) const VERSION: u32 = 1;
pub(super) const FILE_BYTES_MAX: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    pub version: u32,
    pub partition_count: u16,
    /// The latest opening.
    pub incarnation: u32,
}

/// What a log directory was made with, as its file `format` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub version: u32,
    pub partition_count: u16,
}

impl Layout {
    /// What this program reads and writes.
    pub const VERSION: u32 = VERSION;

    /// From the content of `log/format`; `None` if it is damaged.
    pub fn read(content: &[u8]) -> Option<Self> {
        let format = Format::decode(content)?;
        Some(Self {
            version: format.version,
            partition_count: format.partition_count,
        })
    }
}

impl Format {
    pub fn encode(&self) -> String {
        let mut text = format!(
            "forebay log format {}\npartitions {}\nincarnation {}\n",
            self.version, self.partition_count, self.incarnation
        );
        let crc = crc32c(text.as_bytes());
        writeln!(text, "crc32c {crc:08x}").expect("a string takes everything");
        text
    }

    /// The format in a file's content; `None` if it is damaged. A later version is reported with what else was found.
    pub fn decode(content: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(content).ok()?;
        let mut lines = text.lines();
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let format = Self {
            version: field("forebay log format")?.parse().ok()?,
            partition_count: field("partitions")?.parse().ok()?,
            incarnation: field("incarnation")?.parse().ok()?,
        };
        (format.encode() == text).then_some(format)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_survives_and_a_changed_one_does_not() {
        let format = Format {
            version: VERSION,
            partition_count: 8,
            incarnation: 3,
        };
        let text = format.encode();
        assert_eq!(Format::decode(text.as_bytes()), Some(format));
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] ^= 1;
            assert_eq!(Format::decode(&changed), None, "byte {at}");
            assert_eq!(Format::decode(&text.as_bytes()[..at]), None, "cut at {at}");
        }
    }
}
