//! Random numbers that a seed repeats.

/// A small generator (`SplitMix64`): what it gives depends on the seed alone.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator that starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The seed of this run: `RBUILD_RANDOM_SEED`, or one that the clock gives. Whoever takes it prints it.
    pub fn seed() -> u64 {
        Self::given_seed().unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.expect("the clock is past 1970").as_secs()
        })
    }

    /// `RBUILD_RANDOM_SEED`.
    pub fn given_seed() -> Option<u64> {
        let given = std::env::var("RBUILD_RANDOM_SEED").ok().filter(|text| !text.is_empty());
        given.map(|text| text.parse().expect("RBUILD_RANDOM_SEED is a number"))
    }

    /// 64 random bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// True in one of `n` cases.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of the items.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }
}
