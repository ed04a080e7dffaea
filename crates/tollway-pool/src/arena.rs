//! Slots that are told apart even after they have been used again.

/// Names one thing in an [`Arena`], and never another: the slot is reused, the
/// stamp isn't.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Id {
    index: usize,
    stamp: u64,
}

impl Id {
    /// Whether it is among the first so many names of its arena.
    pub(crate) fn is_among_first(self, named: u64) -> bool {
        self.stamp <= named
    }
}

/// A vector whose places are reused, behind names that aren't.
///
/// A late event about something that is gone (a body that ends after its
/// connection died) finds nothing, instead of whatever took its place.
#[derive(Debug)]
pub(crate) struct Arena<T> {
    slots: Vec<(u64, Option<T>)>,
    free: Vec<usize>,
    stamp: u64,
}

impl<T> Arena<T> {
    pub(crate) const fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            stamp: 0,
        }
    }

    pub(crate) fn insert(&mut self, value: T) -> Id {
        self.stamp += 1;
        let filled = (self.stamp, Some(value));
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index] = filled;
                index
            }
            None => {
                self.slots.push(filled);
                self.slots.len() - 1
            }
        };
        Id {
            index,
            stamp: self.stamp,
        }
    }

    pub(crate) fn get(&self, id: Id) -> Option<&T> {
        match self.slots.get(id.index) {
            Some((stamp, value)) if *stamp == id.stamp => value.as_ref(),
            _ => None,
        }
    }

    pub(crate) fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        match self.slots.get_mut(id.index) {
            Some((stamp, value)) if *stamp == id.stamp => value.as_mut(),
            _ => None,
        }
    }

    pub(crate) fn remove(&mut self, id: Id) -> Option<T> {
        match self.slots.get_mut(id.index) {
            Some((stamp, value)) if *stamp == id.stamp => {
                let value = value.take()?;
                self.free.push(id.index);
                Some(value)
            }
            _ => None,
        }
    }

    /// How many names have been given.
    pub(crate) fn named(&self) -> u64 {
        self.stamp
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Id, &T)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(index, (stamp, value))| {
                let id = Id {
                    index,
                    stamp: *stamp,
                };
                value.as_ref().map(|value| (id, value))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::Arena;

    #[test]
    fn a_name_never_finds_what_took_its_place() {
        let mut arena = Arena::new();
        let first = arena.insert("first");
        assert_eq!(arena.remove(first), Some("first"));
        let second = arena.insert("second");
        assert_eq!(arena.get(first), None);
        assert_eq!(arena.remove(first), None);
        assert_eq!(arena.get(second), Some(&"second"));
        assert_eq!(arena.len(), 1);
    }
}
