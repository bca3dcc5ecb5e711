//! The CNI plugin of Selvage.
