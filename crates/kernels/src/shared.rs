//! One output slice written by several threads at disjoint places.

use std::marker::PhantomData;

/// A mutable slice that threads may write to at once, as long as they keep to disjoint elements.
pub(crate) struct SharedSlice<'a, T = f32> {
    start: *mut T,
    len: usize,
    owner: PhantomData<&'a mut [T]>,
}

// Not derived: a copy of the pointer needs no copy of the elements.
impl<T> Clone for SharedSlice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SharedSlice<'_, T> {}

// SAFETY: the accessors are unsafe, and their callers keep to disjoint elements.
unsafe impl<T: Send> Send for SharedSlice<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), owner: PhantomData }
    }

    /// Where element `offset` lies; the end of the slice is allowed.
    pub(crate) fn at(self, offset: usize) -> *mut T {
        assert!(offset <= self.len, "offset {offset} outside of a slice of {}", self.len);
        // SAFETY: within the slice or at its end.
        unsafe { self.start.add(offset) }
    }

    /// The `len` elements from `offset`.
    ///
    /// # Safety
    /// Nobody else reads or writes these elements while the slice returned lives.
    pub(crate) unsafe fn slice(self, offset: usize, len: usize) -> &'a mut [T] {
        assert!(offset + len <= self.len, "{len} elements at {offset} outside of a slice of {}", self.len);
        // SAFETY: within the slice; the caller keeps the elements to itself.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(offset), len) }
    }
}
