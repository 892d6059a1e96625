//! Working memory that is kept from call to call, per thread.
//!
//! `--cfg exact_scratch` (`scripts/asan.sh`) makes every buffer anew and exactly as long as asked for: AddressSanitizer
//! would not see an access beyond one that lies in memory left over from a longer use.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::thread::LocalKey;

/// Cache line, in bytes: vector loads that straddle one cost two.
const LINE: usize = 64;

type Pool<T> = RefCell<Vec<Vec<T>>>;

/// A plain element that buffers are kept of.
pub(crate) trait Pooled: Copy + Default + 'static {
    fn pool() -> &'static LocalKey<Pool<Self>>;
}

macro_rules! pooled {
    ($($ty:ty),*) => {$(
        impl Pooled for $ty {
            fn pool() -> &'static LocalKey<Pool<Self>> {
                thread_local! {
                    static POOL: Pool<$ty> = const { RefCell::new(Vec::new()) };
                }
                &POOL
            }
        }
    )*};
}
pooled!(u16, u32, f32);

/// A buffer aligned to a cache line, taken from this thread's pool and given back when dropped. Its contents are those
/// of its last use.
pub(crate) struct Scratch<T: Pooled> {
    buffer: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Pooled> Scratch<T> {
    pub(crate) fn take(len: usize) -> Self {
        if cfg!(exact_scratch) {
            return Self { buffer: vec![T::default(); len], start: 0, len };
        }
        let mut buffer = T::pool().with_borrow_mut(Vec::pop).unwrap_or_default();
        let padded = len + LINE / size_of::<T>();
        if buffer.len() < padded {
            buffer = vec![T::default(); padded];
        }
        let misaligned = buffer.as_ptr().addr() % LINE;
        let start = (LINE - misaligned) % LINE / size_of::<T>();
        Self { buffer, start, len }
    }
}

impl<T: Pooled> Deref for Scratch<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.buffer[self.start..self.start + self.len]
    }
}

impl<T: Pooled> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.buffer[self.start..self.start + self.len]
    }
}

impl<T: Pooled> Drop for Scratch<T> {
    fn drop(&mut self) {
        if cfg!(exact_scratch) {
            return;
        }
        let buffer = std::mem::take(&mut self.buffer);
        // A thread that is ending has no pool left; the buffer is then simply freed.
        let _ = T::pool().try_with(|pool| pool.borrow_mut().push(buffer));
    }
}
