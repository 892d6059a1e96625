//! Working memory that is kept from call to call, per thread.
//!
//! `--cfg exact_scratch` (`scripts/asan.sh`) makes every buffer anew and exactly as long as asked for: AddressSanitizer
//! would not see an access beyond one that lies in memory left over from a longer use.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::thread::LocalKey;

/// Cache line, in bytes: vector loads that straddle one cost two.
pub(crate) const LINE: usize = 64;

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

/// Frees the working memory that this thread and those of the current rayon pool keep from call to call, so that what is
/// measured next contains it.
pub fn free_working_memory() {
    let free = || {
        u16::pool().take();
        u32::pool().take();
        f32::pool().take();
    };
    free();
    rayon::broadcast(|_| free());
}

/// A buffer aligned to a cache line, taken from this thread's pool and given back when dropped. Its contents are those
/// of its last use.
pub(crate) struct Scratch<T: Pooled> {
    buffer: Vec<T>,
    start: usize,
    len: usize,
}

/// The shortest buffer of at least `len`, or else the longest, so that large requests do not each leave one behind.
fn best<T>(pool: &mut Vec<Vec<T>>, len: usize) -> Option<Vec<T>> {
    let key = |buffer: &Vec<T>| if buffer.len() >= len { buffer.len() } else { usize::MAX - buffer.len() };
    let index = (0..pool.len()).min_by_key(|&i| key(&pool[i]))?;
    Some(pool.swap_remove(index))
}

/// Elements before the first one that starts a cache line, where elements lie on multiples of their size.
pub(crate) fn to_line<T>(buffer: &[T]) -> usize {
    let misaligned = buffer.as_ptr().addr() % LINE;
    (LINE - misaligned) % LINE / size_of::<T>()
}

impl<T: Pooled> Scratch<T> {
    pub(crate) fn take(len: usize) -> Self {
        if cfg!(exact_scratch) {
            return Self { buffer: vec![T::default(); len], start: 0, len };
        }
        let padded = len + LINE / size_of::<T>();
        let mut buffer = T::pool().with_borrow_mut(|pool| best(pool, padded)).unwrap_or_default();
        if buffer.len() < padded {
            // Freed first: both at once would be more than is ever needed.
            drop(buffer);
            buffer = vec![T::default(); padded];
        }
        let start = to_line(&buffer);
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
