//! Requests on their way to the kernel: one growing buffer, nothing allocated per message.
//!
//! Sequence numbers and the final `NLM_F_ACK` are written when the batch is sent, so that the
//! answer to a message can be mapped back to its position.

use crate::attr::Body;

/// Header of a netlink message in bytes.
pub(crate) const HEADER: usize = 16;
/// The message is a request.
pub const REQUEST: u16 = 0x1;
/// The kernel answers even if all went well.
pub const ACK: u16 = 0x4;
/// List everything that matches.
pub const DUMP: u16 = 0x300;
/// Replace an existing object.
pub const REPLACE: u16 = 0x100;
/// Refuse if the object exists.
pub const EXCL: u16 = 0x200;
/// Create the object if it does not exist.
pub const CREATE: u16 = 0x400;
/// Add to the end of a list.
pub const APPEND: u16 = 0x800;

/// A sequence of netlink messages, built in place.
#[derive(Debug, Default, Clone)]
pub struct Batch {
    pub(crate) bytes: Vec<u8>,
    pub(crate) starts: Vec<usize>,
    pub(crate) overflow: bool,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the messages and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.starts.clear();
        self.overflow = false;
    }

    /// Number of messages.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is no message.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Size of all messages in bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The encoded messages.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends one message; `fill` writes its fixed header and attributes. Returns its position.
    pub fn push(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Body<'_>)) -> usize {
        let start = self.bytes.len();
        self.starts.push(start);
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
        fill(&mut Body {
            bytes: &mut self.bytes,
            overflow: &mut self.overflow,
        });
        match u32::try_from(self.bytes.len() - start) {
            Ok(length) => self.patch(start, &length.to_ne_bytes()),
            Err(_) => self.overflow = true,
        }
        self.starts.len() - 1
    }

    /// Where message `index` ends.
    pub(crate) fn end(&self, index: usize) -> usize {
        self.starts
            .get(index + 1)
            .copied()
            .unwrap_or(self.bytes.len())
    }

    /// Numbers all messages: the sequence number of message `i` becomes `first + i`.
    pub(crate) fn number(&mut self, first: u32) {
        for index in 0..self.starts.len() {
            let seq = first.wrapping_add(index as u32);
            if let Some(&start) = self.starts.get(index) {
                self.patch(start + 8, &seq.to_ne_bytes());
            }
        }
    }

    /// Sets or clears `NLM_F_ACK` on message `index`.
    pub(crate) fn set_ack(&mut self, index: usize, on: bool) {
        let Some(&start) = self.starts.get(index) else {
            return;
        };
        let flags = crate::attr::get_u16(&self.bytes, start + 6).unwrap_or_default();
        let flags = if on { flags | ACK } else { flags & !ACK };
        self.patch(start + 6, &flags.to_ne_bytes());
    }

    /// Adds flags to message `index`.
    pub(crate) fn add_flags(&mut self, index: usize, more: u16) {
        let Some(&start) = self.starts.get(index) else {
            return;
        };
        let flags = crate::attr::get_u16(&self.bytes, start + 6).unwrap_or_default() | more;
        self.patch(start + 6, &flags.to_ne_bytes());
    }

    /// Drops the messages behind the first `messages`, which take `size` bytes.
    pub(crate) fn truncate(&mut self, messages: usize, size: usize) {
        self.starts.truncate(messages);
        self.bytes.truncate(size);
    }

    fn patch(&mut self, at: usize, value: &[u8]) {
        if let Some(field) = self.bytes.get_mut(at..at + value.len()) {
            field.copy_from_slice(value);
        }
    }
}
