//! Buffers that are kept from step to step.

use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

/// Buffers of one element type that nobody holds now.
///
/// Batches are ragged, and nearly all that a pass asks for grows with its rows. So every buffer is made as long as it
/// would be in the largest pass so far: a smaller pass then finds what the largest one left, and the memory that is kept
/// is that of the largest pass, whatever came before or after it.
#[derive(Debug)]
pub(super) struct Pool<T> {
    free: RefCell<Vec<Vec<T>>>,
    /// Rows of this pass.
    rows: Cell<usize>,
    /// Rows of the largest pass.
    most_rows: Cell<usize>,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { free: RefCell::default(), rows: Cell::new(1), most_rows: Cell::new(1) }
    }
}

impl<T: Copy + Default> Pool<T> {
    /// Starts a pass over `rows` rows. One larger than all before gives up the shorter buffers.
    pub(super) fn start(&self, rows: usize) {
        let rows = rows.max(1);
        self.rows.set(rows);
        if rows > self.most_rows.replace(rows.max(self.most_rows.get())) {
            self.free.borrow_mut().clear();
        }
    }

    /// A buffer of `len` elements, whose contents are those of its last use: of the free ones that are long enough and
    /// not out of proportion, that which is nearest to what the largest pass would ask for.
    pub(super) fn take(self: &Rc<Self>, len: usize) -> Buffer<T> {
        let longest = (len * self.most_rows.get()).div_ceil(self.rows.get());
        let mut free = self.free.borrow_mut();
        let fits = |buffer: &Vec<T>| buffer.len() >= len && buffer.len() / 2 <= longest;
        let fitting = free.iter().enumerate().filter(|(_, buffer)| fits(buffer));
        let nearest = fitting.min_by_key(|(_, buffer)| buffer.len().abs_diff(longest));
        let data = match nearest.map(|(i, _)| i) {
            Some(i) => free.swap_remove(i),
            None => vec![T::default(); longest],
        };
        Buffer { data, len, pool: self.clone() }
    }
}

/// A buffer on loan; dropped, it goes back.
#[derive(Debug)]
pub(super) struct Buffer<T> {
    data: Vec<T>,
    len: usize,
    pool: Rc<Pool<T>>,
}

impl<T> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.data[..self.len]
    }
}

impl<T> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.data[..self.len]
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        self.pool.free.borrow_mut().push(std::mem::take(&mut self.data));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_for_the_next_step() {
        let pool = Rc::new(Pool::<f32>::default());
        pool.start(100);
        let first = pool.take(100).as_ptr();
        assert_eq!(pool.take(90).as_ptr(), first);
        assert_eq!(pool.take(100).as_ptr(), first);
        let held = pool.take(100);
        assert_ne!(pool.take(100).as_ptr(), held.as_ptr());
    }

    #[test]
    fn what_is_kept_is_what_the_largest_pass_needs() {
        let kept = |passes: &[usize]| {
            let pool = Rc::new(Pool::<f32>::default());
            for &rows in passes {
                pool.start(rows);
                drop((pool.take(rows), pool.take(3 * rows), pool.take(rows), pool.take(5)));
            }
            let mut lengths: Vec<usize> = pool.free.borrow().iter().map(Vec::len).collect();
            lengths.sort_unstable();
            lengths
        };
        assert_eq!(kept(&[190]), [5, 190, 190, 570]);
        assert_eq!(kept(&[100, 12, 190, 120, 47, 190, 61]), kept(&[190]));
    }

    #[test]
    fn a_small_request_leaves_the_large_buffers_alone() {
        let pool = Rc::new(Pool::<f32>::default());
        pool.start(10);
        let large = pool.take(1000).as_ptr();
        assert_ne!(pool.take(10).as_ptr(), large);
        assert_eq!(pool.take(0).len(), 0);
    }
}
