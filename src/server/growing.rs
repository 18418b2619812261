//! The order in which messages began to draw more than one chunk, so that the oldest can always go on.

const NONE: u32 = u32::MAX;

/// A doubly linked list of small integer keys; every operation is O(1).
pub(super) struct Growing {
    neighbours: Vec<(u32, u32)>,
    oldest: u32,
    newest: u32,
}

impl Growing {
    pub(super) fn new() -> Growing {
        Growing {
            neighbours: Vec::new(),
            oldest: NONE,
            newest: NONE,
        }
    }

    pub(super) fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// Appends a key that is not in the list.
    pub(super) fn push(&mut self, key: u32) {
        let index = key as usize;
        if index >= self.neighbours.len() {
            self.neighbours.resize(index + 1, (NONE, NONE));
        }
        self.neighbours[index] = (self.newest, NONE);
        match self.newest {
            NONE => self.oldest = key,
            newest => self.neighbours[newest as usize].1 = key,
        }
        self.newest = key;
    }

    /// Removes a key that is in the list.
    pub(super) fn remove(&mut self, key: u32) {
        let (older, newer) = self.neighbours[key as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.neighbours[older as usize].1 = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.neighbours[newer as usize].0 = older,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_key_moves_on_when_keys_leave_in_any_order() {
        let mut growing = Growing::new();
        for key in [5, 9, 2, 7] {
            growing.push(key);
        }
        growing.remove(9);
        assert_eq!(growing.oldest(), Some(5));
        growing.remove(5);
        assert_eq!(growing.oldest(), Some(2));
        growing.remove(7);
        growing.remove(2);
        assert_eq!(growing.oldest(), None::<u32>);
        growing.push(9);
        assert_eq!(growing.oldest(), Some(9));
    }
}
