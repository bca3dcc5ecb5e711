//! A sorted list in little room, for what there may be as many of as a cluster has pods.
//!
//! A tree of the standard library takes twice the room of its values when it is filled in ascending order, and in that
//! order the API server gives its objects.

use std::cmp::Ordering;

/// So many values lie together at most. A change moves half as many; a power of two, as a vector grows.
const PIECE: usize = 512;

/// Values in ascending order of something that they have, by which they are asked for.
#[derive(Clone, Debug)]
pub(super) struct Sorted<T> {
    /// Ascending; none is empty, none has more than [`PIECE`].
    pieces: Vec<Vec<T>>,
    len: usize,
}

/// Where a value is or belongs, until something is changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    piece: usize,
    within: usize,
}

impl Place {
    /// The first of all.
    pub(super) const FIRST: Place = Place {
        piece: 0,
        within: 0,
    };
}

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Sorted {
            pieces: Vec::new(),
            len: 0,
        }
    }
}

impl<T> Sorted<T> {
    /// How many values there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Where a value is; `order` says how another one stands to it.
    ///
    /// # Errors
    /// It is not there: where it belongs.
    pub(super) fn search(&self, order: impl Fn(&T) -> Ordering) -> Result<Place, Place> {
        let is_before = |piece: &Vec<T>| piece.last().is_some_and(|last| order(last).is_lt());
        let begins_before = |piece: &Vec<T>| piece.first().is_some_and(|one| order(one).is_le());
        let piece = match self.pieces.split_last() {
            // Behind all others, or near the end, as is the usual case while they come.
            Some((last, others)) if begins_before(last) => {
                let (piece, within) = (others.len(), last.len());
                if is_before(last) {
                    return Err(Place { piece, within });
                }
                piece
            }
            _ => self.pieces.partition_point(is_before),
        };
        let values = self.pieces.get(piece).map(Vec::as_slice);
        let found = values.unwrap_or_default().binary_search_by(&order);
        let place = |within| Place { piece, within };
        found.map(place).map_err(place)
    }

    /// The value at a place.
    pub(super) fn get(&self, place: Place) -> Option<&T> {
        self.pieces.get(place.piece)?.get(place.within)
    }

    /// All of them, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pieces.iter().flatten()
    }

    /// Those from a place on, ascending.
    pub(super) fn iter_from(&self, place: Place) -> impl Iterator<Item = &T> {
        let pieces = self.pieces.get(place.piece..).unwrap_or_default();
        let (first, rest) = match pieces.split_first() {
            Some((first, rest)) => (first.get(place.within..).unwrap_or_default(), rest),
            None => (&[][..], pieces),
        };
        first.iter().chain(rest.iter().flatten())
    }

    /// Puts a value where it belongs, or in the place of an equal one: where a search has just told.
    pub(super) fn put(&mut self, place: Result<Place, Place>, value: T) {
        let place = match place {
            Err(place) => place,
            Ok(place) => {
                let piece = self.pieces.get_mut(place.piece);
                if let Some(slot) = piece.and_then(|piece| piece.get_mut(place.within)) {
                    *slot = value;
                }
                return;
            }
        };
        self.len += 1;
        let last = self.pieces.len().saturating_sub(1);
        let Place { piece: at, within } = place;
        let Some(piece) = self.pieces.get_mut(at) else {
            self.pieces.push(vec![value]);
            return;
        };
        if piece.len() < PIECE {
            piece.insert(within, value);
        } else if at == last && within == piece.len() {
            self.pieces.push(vec![value]);
        } else {
            let mut upper = piece.split_off(PIECE / 2);
            piece.shrink_to_fit();
            match within.checked_sub(PIECE / 2) {
                Some(within) => upper.insert(within, value),
                None => piece.insert(within, value),
            }
            self.pieces.insert(at + 1, upper);
        }
    }

    /// Takes out the value at a place.
    pub(super) fn remove(&mut self, place: Place) -> Option<T> {
        let piece = self.pieces.get_mut(place.piece)?;
        if place.within >= piece.len() {
            return None;
        }
        let value = piece.remove(place.within);
        self.len -= 1;
        self.join(place.piece);
        Some(value)
    }

    /// Puts a piece that has lost a value together with the one before or behind it where both have little.
    fn join(&mut self, at: usize) {
        let is_small = |at: usize| {
            let piece = self.pieces.get(at);
            piece.is_some_and(|piece| piece.len() <= PIECE / 4)
        };
        if !is_small(at) {
            return;
        }
        let first = match at.checked_sub(1) {
            Some(before) if is_small(before) => before,
            _ if is_small(at + 1) => at,
            _ => {
                if self.pieces.get(at).is_some_and(Vec::is_empty) {
                    self.pieces.remove(at);
                }
                return;
            }
        };
        let upper = self.pieces.remove(first + 1);
        if let Some(lower) = self.pieces.get_mut(first) {
            lower.extend(upper);
            lower.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn insert(sorted: &mut Sorted<u16>, value: u16) -> bool {
        let place = sorted.search(|other| other.cmp(&value));
        sorted.put(place, value);
        place.is_err()
    }

    fn remove(sorted: &mut Sorted<u16>, value: u16) -> bool {
        let place = sorted.search(|other| other.cmp(&value));
        place.ok().and_then(|place| sorted.remove(place)) == Some(value)
    }

    fn check(sorted: &Sorted<u16>, model: &BTreeSet<u16>) {
        assert!(sorted.iter().eq(model), "{sorted:?}");
        assert_eq!(sorted.len(), model.len());
        let mut sizes = sorted.pieces.iter().map(Vec::len);
        assert!(sizes.all(|size| (1..=PIECE).contains(&size)));
        for value in model {
            let place = sorted.search(|other| other.cmp(value)).expect("a value");
            assert_eq!(sorted.get(place), Some(value));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// It is a set, whatever is done to it in whatever order.
        #[test]
        fn it_is_a_set(
            steps in prop::collection::vec((any::<bool>(), 0..6000_u16, 1..900_u16, any::<bool>()), 1..30),
            start in 0..6500_u16,
        ) {
            let (mut sorted, mut model) = (Sorted::default(), BTreeSet::new());
            for (adds, first, count, descending) in steps {
                for n in 0..count {
                    let value = first + if descending { count - n } else { n };
                    match adds {
                        true => prop_assert_eq!(insert(&mut sorted, value), model.insert(value)),
                        false => prop_assert_eq!(remove(&mut sorted, value), model.remove(&value)),
                    }
                }
                check(&sorted, &model);
                let (Ok(place) | Err(place)) = sorted.search(|other| other.cmp(&start));
                prop_assert!(sorted.iter_from(place).eq(model.range(start..)));
            }
        }
    }

    /// Filled in ascending order it has no room to spare, and none is kept for what is gone.
    #[test]
    fn room() {
        let mut sorted = Sorted::default();
        let room = |sorted: &Sorted<u16>| sorted.pieces.iter().map(Vec::capacity).sum::<usize>();
        for n in 0..10_240 {
            insert(&mut sorted, n);
        }
        assert_eq!(room(&sorted), 10_240);
        for n in (0..10_240).filter(|n| n % 64 != 0) {
            remove(&mut sorted, n);
        }
        assert_eq!(sorted.len(), 160);
        assert!(room(&sorted) <= 2 * PIECE, "{sorted:?}");
    }
}
