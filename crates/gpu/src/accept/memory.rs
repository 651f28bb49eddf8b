//! The patterns of the memory test. A pattern gives each 64-bit word a value by its address, so that a kernel writes and checks all words in
//! parallel; `kernels.cu` has the same function.
//!
//! Each round writes the pattern to all memory, checks it while writing the complement, and checks the complement (moving inversions): so
//! each bit holds both values, and changes in both directions. All memory is written before the first word is checked, so a word that is
//! reached by two addresses is found.
//!
//! Source: J. van de Goor, "Testing Semiconductor Memories" (march tests, address faults); the same families as in memtest86 and in
//! NVIDIA's "Memtest Diagnostic".

/// A family of patterns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// Every word has this value.
    Constant(u64),
    /// One bit of each word is set; it moves with the address and with each round (walking ones; the complement walks zeros).
    WalkingOnes,
    /// The same walking bit in each byte.
    WalkingBytes,
    /// Every word has its own address.
    Address,
    /// Every word has a pseudo-random value.
    Random,
}

impl Pattern {
    /// The patterns of the short test: zeros and ones, and a checkerboard.
    pub const SHORT: [Self; 2] = [Self::Constant(0), Self::Constant(0xaaaa_aaaa_aaaa_aaaa)];
    /// The patterns of the long test.
    pub const LONG: [Self; 6] = [
        Self::Constant(0),
        Self::Constant(0xaaaa_aaaa_aaaa_aaaa),
        Self::Address,
        Self::WalkingOnes,
        Self::WalkingBytes,
        Self::Random,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Constant(0) => "zeros and ones",
            Self::Constant(_) => "checkerboard",
            Self::WalkingOnes => "walking ones",
            Self::WalkingBytes => "walking bits in bytes",
            Self::Address => "address as data",
            Self::Random => "random values",
        }
    }

    /// Number of rounds, each with other values.
    pub fn rounds(self) -> u64 {
        match self {
            Self::Constant(_) | Self::Address => 1,
            Self::WalkingOnes => 64,
            Self::WalkingBytes => 8,
            Self::Random => 16,
        }
    }

    /// The number of the family in `kernels.cu`, and its parameter in a round.
    pub(crate) fn kernel(self, round: u64) -> (i32, u64) {
        match self {
            Self::Constant(value) => (0, value),
            Self::WalkingOnes => (1, round),
            Self::WalkingBytes => (2, round),
            Self::Address => (3, round),
            Self::Random => (4, round),
        }
    }

    /// The value of the word at an address, in bytes from the start of the tested memory.
    pub fn value(self, round: u64, address: u64) -> u64 {
        let word = address / 8;
        match self {
            Self::Constant(value) => value,
            Self::WalkingOnes => 1 << ((word + round) % 64),
            Self::WalkingBytes => 0x0101_0101_0101_0101 << ((word + round) % 8),
            Self::Address => address,
            Self::Random => mix(address ^ (round << 56)),
        }
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A word with a wrong value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mismatch {
    /// Address in bytes from the start of the tested memory.
    pub address: u64,
    /// The value that was written.
    pub written: u64,
    /// The value that was read.
    pub read: u64,
}

/// The result of a memory test on one GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tested {
    /// Bytes that were tested.
    pub bytes: u64,
    /// Number of wrong words over all patterns and rounds.
    pub mismatches: u64,
    /// The first wrong word, with its pattern.
    pub first: Option<(Pattern, Mismatch)>,
}

/// A memory to test on the host: what the kernels do on a GPU.
pub trait Words {
    /// Number of words.
    fn len(&self) -> u64;
    /// Writes a word.
    fn write(&mut self, word: u64, value: u64);
    /// Reads a word.
    fn read(&self, word: u64) -> u64;
    /// Whether there are no words.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Runs patterns over a memory on the host. The simulator of GPUs and tests use it; a GPU runs the same steps in kernels.
pub fn run(memory: &mut dyn Words, patterns: &[Pattern]) -> Tested {
    let mut tested = Tested { bytes: memory.len() * 8, ..Tested::default() };
    for pattern in patterns {
        for round in 0..pattern.rounds() {
            let value = |word: u64| pattern.value(round, word * 8);
            for word in 0..memory.len() {
                memory.write(word, value(word));
            }
            for inverted in [false, true] {
                for word in 0..memory.len() {
                    let written = if inverted { !value(word) } else { value(word) };
                    let read = memory.read(word);
                    if read != written {
                        tested.mismatches += 1;
                        tested.first.get_or_insert((*pattern, Mismatch { address: word * 8, written, read }));
                    }
                    if !inverted {
                        memory.write(word, !written);
                    }
                }
            }
        }
    }
    tested
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A memory with one defect.
    struct Defective {
        words: Vec<u64>,
        /// A word whose bits in the mask always have this value.
        stuck: Option<(u64, u64, u64)>,
        /// The address line of this bit is ignored.
        ignored_line: Option<u32>,
    }

    impl Defective {
        fn new(stuck: Option<(u64, u64, u64)>, ignored_line: Option<u32>) -> Self {
            Self { words: vec![0; 4096], stuck, ignored_line }
        }
        fn at(&self, word: u64) -> usize {
            usize::try_from(self.ignored_line.map_or(word, |line| word & !(1 << line))).unwrap()
        }
    }

    impl Words for Defective {
        fn len(&self) -> u64 {
            self.words.len() as u64
        }
        fn write(&mut self, word: u64, value: u64) {
            let at = self.at(word);
            self.words[at] = value;
        }
        fn read(&self, word: u64) -> u64 {
            let value = self.words[self.at(word)];
            match self.stuck {
                Some((at, mask, bits)) if at == word => (value & !mask) | (bits & mask),
                _ => value,
            }
        }
    }

    #[test]
    fn sound_memory_has_no_mismatches() {
        let tested = run(&mut Defective::new(None, None), &Pattern::LONG);
        assert_eq!((tested.bytes, tested.mismatches, tested.first), (4096 * 8, 0, None));
    }

    #[test]
    fn stuck_bits_are_found_by_the_short_test() {
        for bit in [0, 31, 63] {
            for bits in [0, u64::MAX] {
                let tested = run(&mut Defective::new(Some((1000, 1 << bit, bits)), None), &Pattern::SHORT);
                let (_, mismatch) = tested.first.unwrap();
                assert_eq!(mismatch.address, 8000);
                assert_eq!(mismatch.written ^ mismatch.read, 1 << bit);
                assert_eq!(tested.mismatches, 2, "each pattern writes both values once");
            }
        }
    }

    #[test]
    fn ignored_address_lines_are_found_by_address_as_data() {
        for line in 0..12 {
            let tested = run(&mut Defective::new(None, Some(line)), &[Pattern::Address]);
            assert!(tested.mismatches > 0, "line {line}");
        }
    }

    #[test]
    fn every_bit_is_alone_once_in_the_rounds_of_walking_ones() {
        for word in [0, 5, 63, 64] {
            let seen = (0..64).fold(0, |seen, round| {
                let value = Pattern::WalkingOnes.value(round, word * 8);
                assert_eq!(value.count_ones(), 1);
                seen | value
            });
            assert_eq!(seen, u64::MAX);
        }
    }
}
