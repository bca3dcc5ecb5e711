//! From Kubernetes network policies to an nftables plan.
