//! The CNI plugin of Selvage.

fn main() {}
