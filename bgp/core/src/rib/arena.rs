//! Storage by index in blocks that never move: growing costs one block, not a copy of everything and twice the memory.

/// Elements in a block.
const BLOCK: usize = 1 << BITS;
const BITS: u32 = 10;

/// Values of one type, named by a `u32`. Freed places are used again, the latest first.
pub(crate) struct Arena<T> {
    blocks: Vec<Vec<T>>,
    len: u32,
    free: Vec<u32>,
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Arena {
            blocks: Vec::new(),
            len: 0,
            free: Vec::new(),
        }
    }
}

impl<T> Arena<T> {
    /// Stores `value`.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        if let Some(at) = self.free.pop() {
            self[at] = value;
            return at;
        }
        let at = self.len;
        if (at as usize).is_multiple_of(BLOCK) {
            self.blocks.push(Vec::with_capacity(BLOCK));
        }
        if let Some(block) = self.blocks.last_mut() {
            block.push(value);
        }
        self.len += 1;
        at
    }

    /// Gives the place of `at` back. Its value stays until the place is used again. When nothing is left in use, all
    /// memory is given back.
    pub(crate) fn free(&mut self, at: u32) {
        self.free.push(at);
        if self.free.len() == self.len as usize {
            *self = Arena::default();
        }
    }

    /// One past the largest index in use now or before.
    pub(crate) fn end(&self) -> u32 {
        self.len
    }

    /// How many are in use.
    pub(crate) fn in_use(&self) -> usize {
        self.len as usize - self.free.len()
    }

    /// Octets of memory that it holds.
    pub(crate) fn octets(&self) -> usize {
        self.blocks.len() * BLOCK * size_of::<T>() + self.free.capacity() * 4
    }
}

impl<T> std::ops::Index<u32> for Arena<T> {
    type Output = T;

    fn index(&self, at: u32) -> &T {
        &self.blocks[(at >> BITS) as usize][at as usize % BLOCK]
    }
}

impl<T> std::ops::IndexMut<u32> for Arena<T> {
    fn index_mut(&mut self, at: u32) -> &mut T {
        &mut self.blocks[(at >> BITS) as usize][at as usize % BLOCK]
    }
}

/// One small value for each index of an [`Arena`], made when first written.
pub(crate) struct Column<T> {
    blocks: Vec<Option<Box<[T]>>>,
    empty: T,
}

impl<T: Copy> Column<T> {
    /// A column that reads as `empty` everywhere.
    pub(crate) fn new(empty: T) -> Self {
        Column {
            blocks: Vec::new(),
            empty,
        }
    }

    /// The value at `at`.
    pub(crate) fn get(&self, at: u32) -> T {
        match self.blocks.get((at >> BITS) as usize) {
            Some(Some(block)) => block[at as usize % BLOCK],
            _ => self.empty,
        }
    }

    /// Stores the value at `at`.
    pub(crate) fn set(&mut self, at: u32, value: T) {
        let block = (at >> BITS) as usize;
        if block >= self.blocks.len() {
            self.blocks.resize_with(block + 1, || None);
        }
        let empty = self.empty;
        self.blocks[block].get_or_insert_with(|| vec![empty; BLOCK].into())[at as usize % BLOCK] =
            value;
    }

    /// One past the largest index that may read as other than empty.
    pub(crate) fn end(&self) -> u32 {
        (self.blocks.len() << BITS) as u32
    }

    /// Octets of memory that it holds.
    pub(crate) fn octets(&self) -> usize {
        self.blocks.iter().flatten().count() * BLOCK * size_of::<T>() + self.blocks.capacity() * 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_used_again_and_given_back() {
        let mut a = Arena::default();
        let at: Vec<u32> = (0..3000).map(|i| a.insert(i)).collect();
        assert_eq!((a[0], a[1500], a[2999]), (0, 1500, 2999));
        a.free(7);
        assert_eq!(a.in_use(), 2999);
        assert_eq!(a.insert(70), 7);
        assert_eq!((a[7], a.end()), (70, 3000));
        for i in at {
            a.free(i);
        }
        assert_eq!((a.end(), a.octets()), (0, 0));
    }

    #[test]
    fn a_column_reads_as_empty_until_written() {
        let mut c = Column::new(9u8);
        assert_eq!(c.get(100_000), 9);
        c.set(5000, 1);
        assert_eq!((c.get(5000), c.get(4999), c.get(0)), (1, 9, 9));
    }
}
