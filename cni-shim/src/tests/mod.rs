//! Tests that need the fault points: what is left when a call fails or dies at any of its steps.

mod leases;
mod steps;
