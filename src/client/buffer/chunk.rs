//! A run of entries in one contiguous piece of memory: the whole of a segment file, without its head.
//!
//! ```text
//! entry: | crc u32 | bytes u32 | sequence u64 | encoded message |   little-endian
//!        the CRC-32C covers everything behind itself
//! ```
//!
//! Invariants: sequence numbers rise strictly; `starts` holds the position of every entry in `data`, in order.

use std::cell::OnceCell;

pub(super) const ENTRY_HEAD_BYTES: usize = 16;

/// Entries in memory.
#[derive(Debug, Default)]
pub(super) struct Body {
    data: Vec<u8>,
    starts: Vec<u32>,
}

impl Body {
    /// Keeps the intact entries at the front of `data` with rising sequence numbers between the bounds (both exclusive).
    pub(super) fn recover(mut data: Vec<u8>, after: u64, before: u64) -> Self {
        let mut starts = Vec::new();
        let (mut position, mut last) = (0, after);
        while let Some(head) = data.get(position..position + ENTRY_HEAD_BYTES) {
            let bytes = u32::from_le_bytes(fixed(&head[4..8])) as usize;
            let sequence = sequence_of(head);
            let Some(entry) = data.get(position..position + ENTRY_HEAD_BYTES + bytes) else {
                break;
            };
            if checksum(&entry[4..]) != u32::from_le_bytes(fixed(&entry[..4])) || sequence <= last || sequence >= before
            {
                break;
            }
            starts.push(u32::try_from(position).expect("a segment file is read up to 4 GiB"));
            last = sequence;
            position += entry.len();
        }
        data.truncate(position);
        Self { data, starts }
    }

    /// Appends an entry and returns its bytes. Only what goes to a disk needs the checksum.
    pub(super) fn push(&mut self, sequence: u64, encoded: &[u8], checked: bool) -> &[u8] {
        let start = self.data.len();
        self.starts
            .push(u32::try_from(start).expect("a chunk rolls long before 4 GiB"));
        let bytes = u32::try_from(encoded.len()).expect("Buffer::push bounds a message");
        let mut head = [0; ENTRY_HEAD_BYTES];
        head[4..8].copy_from_slice(&bytes.to_le_bytes());
        head[8..].copy_from_slice(&sequence.to_le_bytes());
        self.data.extend_from_slice(&head);
        self.data.extend_from_slice(encoded);
        if checked {
            let crc = checksum(&self.data[start + 4..]);
            self.data[start..start + 4].copy_from_slice(&crc.to_le_bytes());
        }
        &self.data[start..]
    }

    /// Takes back the last `push`.
    pub(super) fn pop(&mut self) {
        let start = self.starts.pop().expect("pop follows a push");
        self.data.truncate(start as usize);
    }

    pub(super) fn clear(&mut self) {
        self.data.clear();
        self.starts.clear();
    }

    pub(super) fn bytes(&self) -> usize {
        self.data.len()
    }

    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    /// Sequence number of the entry at `index`.
    pub(super) fn sequence(&self, index: usize) -> u64 {
        sequence_of(&self.data[self.starts[index] as usize..])
    }

    /// Position of the entry at `index`; of the end when there is none.
    pub(super) fn position(&self, index: usize) -> usize {
        self.starts.get(index).map_or(self.data.len(), |&start| start as usize)
    }

    /// Index of the first entry with this sequence number or a higher one.
    pub(super) fn index_of(&self, sequence: u64) -> usize {
        let data = &self.data;
        self.starts
            .partition_point(|&start| sequence_of(&data[start as usize..]) < sequence)
    }

    /// The entry at a position and the position behind it.
    pub(super) fn entry(&self, position: usize) -> Option<(u64, &[u8], usize)> {
        let head = self.data.get(position..position + ENTRY_HEAD_BYTES)?;
        let start = position + ENTRY_HEAD_BYTES;
        let end = start + u32::from_le_bytes(fixed(&head[4..8])) as usize;
        Some((sequence_of(head), &self.data[start..end], end))
    }
}

/// A chunk's numbers, which stay in memory, and its entries, which come and go when a file holds them.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Names the file; no entry is lower.
    pub(super) id: u64,
    /// Highest sequence number in it; `id - 1` while empty.
    pub(super) last_sequence: u64,
    /// Entries neither acknowledged nor dropped, and their bytes with heads.
    pub(super) live_count: u64,
    pub(super) live_bytes: u64,
    pub(super) body: OnceCell<Body>,
}

impl Chunk {
    pub(super) fn new(id: u64, body: Body) -> Self {
        Self {
            id,
            last_sequence: id - 1,
            live_count: 0,
            live_bytes: 0,
            body: OnceCell::from(body),
        }
    }
}

pub(super) fn checksum(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// The bytes as an array of the length the caller sliced.
pub(super) fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the caller sliced this length")
}

fn sequence_of(entry: &[u8]) -> u64 {
    u64::from_le_bytes(fixed(&entry[8..16]))
}
