//! Names made of content: SHA-256, because labels and policies come from tenants, and two contents that a tenant could
//! make collide would share one set.

use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::hash::{Hash, Hasher};

/// The first 96 bits of the digest of a value's content, in hexadecimal.
pub(crate) fn hex(content: &impl Hash) -> String {
    let mut hasher = ContentHasher(Sha256::new());
    content.hash(&mut hasher);
    let mut name = String::with_capacity(24);
    for byte in hasher.0.finalize().iter().take(12) {
        // Writing to a String cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// What `Hash` feeds, as bytes that do not depend on the machine.
struct ContentHasher(Sha256);

impl Hasher for ContentHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn write_u16(&mut self, value: u16) {
        self.write(&value.to_le_bytes());
    }

    fn write_u32(&mut self, value: u32) {
        self.write(&value.to_le_bytes());
    }

    fn write_u64(&mut self, value: u64) {
        self.write(&value.to_le_bytes());
    }

    fn write_u128(&mut self, value: u128) {
        self.write(&value.to_le_bytes());
    }

    // The length of a length is that of the machine; names should not depend on it.
    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }

    fn finish(&self) -> u64 {
        // Only `hex` reads the digest.
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names are those of every other build, or an upgrade would write all chains anew.
    #[test]
    fn names_depend_on_content_alone() {
        assert_eq!(hex(&()), "e3b0c44298fc1c149afbf4c8");
        assert_eq!(hex(&[1_u16, 0x203]), hex(&vec![1_u16, 0x203]));
        assert_ne!(hex(&("ab", "c")), hex(&("a", "bc")));
    }
}
