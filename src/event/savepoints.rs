//! Where the savepoints of this transaction begin in a list of what it has done.

/// (nesting level, length of the list when that level first added to it), innermost last.
#[derive(Default)]
pub struct Savepoints(Vec<(i32, usize)>);

impl Savepoints {
    /// Something is about to be added at this nesting level to a list of this length.
    pub fn note(&mut self, level: i32, length: usize) {
        if level > 1 && self.0.last().is_none_or(|(marked, _)| *marked < level) {
            self.0.push((level, length));
        }
    }

    /// A savepoint was released: its additions belong to its parent.
    pub fn release(&mut self, level: i32) {
        if self.0.last().is_some_and(|(marked, _)| *marked >= level) {
            let Some((_, length)) = self.0.pop() else { return };
            self.note(level - 1, length);
        }
    }

    /// A savepoint was rolled back: the new length of the list. None if it has added nothing.
    pub fn roll_back(&mut self, level: i32) -> Option<usize> {
        let mut cut = None;
        while let Some((_, length)) = self.0.pop_if(|(marked, _)| *marked >= level) {
            cut = Some(length);
        }
        cut
    }

    /// Where the additions of the innermost savepoint begin.
    pub fn begin(&self) -> usize {
        self.0.last().map_or(0, |(_, length)| *length)
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Steps of a transaction, for tests of lists that savepoints truncate.
    #[derive(Clone, Debug)]
    pub enum Step<T> {
        Do(T),
        Savepoint,
        Release,
        RollBack,
    }

    pub fn steps<T: Clone + std::fmt::Debug + 'static>(
        one: impl Strategy<Value = T> + 'static,
    ) -> impl Strategy<Value = Vec<Step<T>>> {
        let step = prop_oneof![
            4 => one.prop_map(Step::Do),
            1 => Just(Step::Savepoint),
            1 => Just(Step::Release),
            1 => Just(Step::RollBack),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        /// Compared with a stack of copies.
        #[test]
        fn a_list_is_what_it_was_at_the_savepoint(steps in steps(any::<u8>())) {
            let (mut list, mut savepoints, mut copies) = (Vec::new(), Savepoints::default(), Vec::new());
            for step in steps {
                let level = copies.len() as i32 + 1;
                match step {
                    Step::Do(value) => {
                        savepoints.note(level, list.len());
                        list.push(value);
                    }
                    Step::Savepoint => copies.push(list.clone()),
                    Step::Release => {
                        if copies.pop().is_some() {
                            savepoints.release(level);
                        }
                    }
                    Step::RollBack => {
                        if let Some(copy) = copies.pop() {
                            if let Some(length) = savepoints.roll_back(level) {
                                list.truncate(length);
                            }
                            prop_assert_eq!(&list, &copy);
                        }
                    }
                }
            }
        }
    }
}
