//! (being built)
/// (being built)
#[derive(Debug, Clone, Default)]
pub struct ImageConfig {}
