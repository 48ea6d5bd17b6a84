//! Values that begin at a cache line.

use std::ops::{Deref, DerefMut};

/// Bytes of a cache line, and of the widest register.
const LINE: usize = 64;

/// A fixed number of values whose first lies at the start of a cache line, so that no register's load or store touches
/// two lines: that would cost a kernel which does little more up to a third of its speed.
#[derive(Debug)]
pub(crate) struct Aligned<T> {
    values: Vec<T>,
    start: usize,
    length: usize,
}

impl<T: Copy + Default> Aligned<T> {
    /// So many zeros.
    pub(crate) fn zeros(length: usize) -> Self {
        let spare = LINE / size_of::<T>();
        let values = vec![T::default(); length + spare];
        let start = values.as_ptr().align_offset(LINE).min(spare);
        Self {
            values,
            start,
            length,
        }
    }

    /// Forget all but the first `length` values.
    pub(crate) fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values[self.start..self.start + self.length]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values[self.start..self.start + self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begins_at_a_line<T: Copy + Default + PartialEq + std::fmt::Debug>() {
        for length in [0, 1, 15, 16, 17, 1000] {
            let mut values = Aligned::<T>::zeros(length);
            assert_eq!(&*values, vec![T::default(); length]);
            assert_eq!(values.as_ptr().addr() % LINE, 0);
            values.truncate(10);
            assert_eq!(values.len(), length.min(10));
            let moved = Box::new(values);
            assert_eq!(moved.as_ptr().addr() % LINE, 0);
        }
    }

    #[test]
    fn the_first_value_lies_at_the_start_of_a_line() {
        begins_at_a_line::<u8>();
        begins_at_a_line::<f32>();
        begins_at_a_line::<f64>();
    }
}
