//! A BGP speaker without I/O: messages, sessions, RIB, filters.
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests {
    #[test]
    fn builds() {}
}
