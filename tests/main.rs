//! The system trials, in one binary.

fn main() {}
