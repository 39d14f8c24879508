//! A small random generator for choosing sizes and victims: fast, seedable, no state beyond one word.
//!
//! Not for statistics. The step is Marsaglia's xorshift64* (Vigna, "An experimental exploration of Marsaglia's
//! xorshift generators, scrambled", 2016).

/// A generator; equal seeds give equal sequences.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator for this seed; any value is fine.
    pub const fn new(seed: u64) -> Self {
        // The state must not be zero, and neighbouring seeds should not start alike.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The seed of this run: `TEST_SEED`, or a fixed number, mixed with `salt` so that threads differ.
    pub fn from_environment(salt: u64) -> Self {
        let seed = std::env::var("TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_220_917_u64);
        Self::new(seed.wrapping_add(salt.wrapping_mul(0x2545_f491_4f6c_dd1d)))
    }

    /// The next 64 bits.
    #[inline]
    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is not zero.
    #[inline]
    pub fn below(&mut self, bound: usize) -> usize {
        (((self.word() >> 32) * bound as u64) >> 32) as usize
    }

    /// A size up to `max` with small sizes much more likely: every power of two has the same share.
    #[inline]
    pub fn size(&mut self, max: usize) -> usize {
        let bits = usize::BITS - max.leading_zeros();
        let ceiling = 1_usize << (1 + self.below(bits as usize));
        (1 + self.below(ceiling)).min(max)
    }
}
