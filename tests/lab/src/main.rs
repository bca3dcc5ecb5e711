//! Network namespaces, links and routing daemons as values.

fn main() {}
