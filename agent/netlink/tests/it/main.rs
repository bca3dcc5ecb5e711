//! Against the kernel, in network namespaces that the tests make. Needs root.

mod space;

mod conntrack;
mod deletion;
mod links;
mod nexthops;
mod nft;
mod qdiscs;
mod routes;
