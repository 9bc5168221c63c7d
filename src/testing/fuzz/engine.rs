//! A small mutation engine: changes inputs that are known to be interesting. It follows no coverage; what makes up for
//! that is a corpus of whole, valid inputs and changes aimed at lengths and counts.

/// SplitMix64: the same on every machine.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % end as u64) as usize
    }
}

/// No input grows beyond this.
const INPUT_BYTES_MAX: usize = 64 * 1024;
/// Numbers at which length checks go wrong.
const EDGES: [u32; 14] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0xffff,
    0x0001_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fffe,
    0xffff_ffff,
];

/// Makes inputs from inputs.
#[derive(Debug)]
pub struct Engine {
    rng: Rng,
    corpus: Vec<Vec<u8>>,
}

impl Engine {
    /// # Panics
    /// Without a corpus there is nothing to change.
    pub fn new(seed: u64, corpus: Vec<Vec<u8>>) -> Self {
        assert!(!corpus.is_empty(), "a target has at least one input to begin with");
        Self {
            rng: Rng::new(seed),
            corpus,
        }
    }

    pub fn next_input(&mut self) -> Vec<u8> {
        let base = self.rng.below(self.corpus.len());
        let mut input = self.corpus[base].clone();
        for _ in 0..=self.rng.below(4) {
            self.mutate(&mut input);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn mutate(&mut self, input: &mut Vec<u8>) {
        let kind = self.rng.below(10);
        if input.is_empty() {
            return self.splice(input);
        }
        let at = self.rng.below(input.len());
        let length = 1 + self.rng.below((input.len() - at).min(64));
        match kind {
            0 | 1 => input[at] ^= 1 << self.rng.below(8),
            2 => input[at] = self.rng.number() as u8,
            3 | 4 => self.tweak_number(input, at),
            5 => input.truncate(at),
            6 => drop(input.drain(at..at + length)),
            7 => {
                let copy = input[at..at + length].to_vec();
                let to = self.rng.below(input.len() + 1);
                input.splice(to..to, copy);
            }
            8 => {
                let bytes: Vec<u8> = (0..length).map(|_| self.rng.number() as u8).collect();
                input[at..at + length].copy_from_slice(&bytes);
            }
            _ => self.splice(input),
        }
    }

    /// Overwrites two or four bytes with an edge, or with a number close to what stands there.
    fn tweak_number(&mut self, input: &mut [u8], at: usize) {
        let width = if self.rng.below(3) == 0 { 2 } else { 4 };
        let Some(field) = input.get_mut(at..at + width) else {
            return;
        };
        let mut bytes = [0; 4];
        bytes[..width].copy_from_slice(field);
        let number = u32::from_le_bytes(bytes);
        let number = match self.rng.below(3) {
            0 => EDGES[self.rng.below(EDGES.len())],
            1 => number.wrapping_add(1 + self.rng.below(16) as u32),
            _ => number.wrapping_sub(1 + self.rng.below(16) as u32),
        };
        field.copy_from_slice(&number.to_le_bytes()[..width]);
    }

    /// The head of this input and the tail of another.
    fn splice(&mut self, input: &mut Vec<u8>) {
        let other = &self.corpus[self.rng.below(self.corpus.len())];
        let cut = self.rng.below(input.len() + 1);
        let from = self.rng.below(other.len() + 1);
        input.truncate(cut);
        input.extend_from_slice(&other[from..]);
    }
}
