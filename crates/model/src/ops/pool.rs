//! Buffers that are kept from step to step.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

/// Buffers of one element type that nobody holds now.
#[derive(Debug, Default)]
pub(super) struct Pool<T> {
    free: RefCell<Vec<Vec<T>>>,
}

impl<T: Copy + Default> Pool<T> {
    /// A buffer of `len` elements, whose contents are those of its last use.
    ///
    /// It is the smallest free one that is long enough and not twice as long. Where there is none, one that is a little
    /// too short makes way for a new one, so that a longer batch does not leave the buffers of the shorter one behind.
    pub(super) fn take(self: &Rc<Self>, len: usize) -> Buffer<T> {
        let mut free = self.free.borrow_mut();
        let nearest = |fits: &dyn Fn(usize) -> bool| {
            let candidates = free.iter().enumerate().filter(|(_, buffer)| fits(buffer.len()));
            candidates.min_by_key(|(_, buffer)| buffer.len().abs_diff(len)).map(|(i, _)| i)
        };
        let data = match nearest(&|have| have >= len && have / 2 <= len) {
            Some(i) => free.swap_remove(i),
            None => {
                if let Some(i) = nearest(&|have| have < len && have >= len / 2) {
                    drop(free.swap_remove(i));
                }
                vec![T::default(); len]
            }
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
        let first = pool.take(100).as_ptr();
        assert_eq!(pool.take(90).as_ptr(), first);
        assert_eq!(pool.take(100).as_ptr(), first);
        let held = pool.take(100);
        assert_ne!(pool.take(100).as_ptr(), held.as_ptr());
    }

    #[test]
    fn longer_batches_do_not_leave_short_buffers_behind() {
        let pool = Rc::new(Pool::<f32>::default());
        for len in [100, 120, 150, 190, 150] {
            drop((pool.take(len), pool.take(4 * len)));
        }
        let lengths: Vec<usize> = pool.free.borrow().iter().map(Vec::len).collect();
        assert_eq!(lengths.len(), 2, "{lengths:?}");
    }

    #[test]
    fn a_small_request_leaves_the_large_buffers_alone() {
        let pool = Rc::new(Pool::<f32>::default());
        let large = pool.take(1000).as_ptr();
        assert_ne!(pool.take(10).as_ptr(), large);
        assert_eq!(pool.take(0).len(), 0);
    }
}
