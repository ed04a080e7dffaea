//! Counting instructions by whatever means the machine has.

use std::vec;

use crate::Instructions;
use crate::callgrind::callgrind;

/// The instructions that one piece of work after the other takes: by the
/// machine's counter, or else by valgrind, under which the whole program has
/// then run beforehand.
#[derive(Debug)]
pub struct Executed {
    counter: Option<Instructions>,
    emulated: vec::IntoIter<f64>,
}

impl Executed {
    /// Runs this program under valgrind where there is no counter.
    #[must_use]
    pub fn prepare() -> Self {
        let counter = Instructions::new();
        let emulated = match counter {
            Some(_) => Vec::new(),
            None => callgrind().unwrap_or_default(),
        };
        Self {
            counter,
            emulated: emulated.into_iter(),
        }
    }

    /// The instructions of `work`, which is the next that the program hands to
    /// [`counted`](crate::counted) under valgrind. `None` where neither counts.
    pub fn by(&mut self, work: impl FnMut()) -> Option<f64> {
        match &mut self.counter {
            Some(counter) => counter.count(1, work),
            None => self.emulated.next(),
        }
    }

    /// Leaves the next work out.
    pub fn skip(&mut self) {
        self.emulated.next();
    }
}
