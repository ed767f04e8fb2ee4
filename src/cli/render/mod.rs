//! (being built)

pub mod diagnostic;
mod json;
pub mod output;
mod plain;
mod rawjson;
#[cfg(test)]
mod story;
pub mod table;
mod tty;
