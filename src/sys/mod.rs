//! (being built)
#![allow(unsafe_code)]
