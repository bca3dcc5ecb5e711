//! End-to-end, interoperability and fault tests, and benches.
