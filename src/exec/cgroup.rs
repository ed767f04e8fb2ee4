//! Control groups.
/// Limits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resources {
    /// `--memory`, in bytes.
    pub memory: Option<u64>,
    /// `--memory-swap`.
    pub swap: Option<Swap>,
    /// Processor time and the period in which it may be used, in microseconds.
    pub cpu_time: Option<(u64, u64)>,
    /// `--cpu-period`, where no quota comes with it.
    pub cpu_period: Option<u64>,
    /// `--cpu-shares`.
    pub cpu_shares: Option<u64>,
    /// `--cpuset-cpus`.
    pub cpus: Option<String>,
    /// `--cpuset-mems`.
    pub mems: Option<String>,
}

/// `--memory-swap`: memory and swap together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// As much as there is.
    Unlimited,
    /// So many bytes.
    Limit(u64),
}
