//! A plan or a delta as an `nft -f` script, for people and for tests.
