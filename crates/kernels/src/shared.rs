//! One output slice written by several threads at disjoint places.

use std::marker::PhantomData;

/// A mutable slice that threads may write to at once, as long as they keep to disjoint elements.
#[derive(Clone, Copy)]
pub(crate) struct SharedSlice<'a> {
    start: *mut f32,
    len: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: the accessors are unsafe, and their callers keep to disjoint elements.
unsafe impl Send for SharedSlice<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedSlice<'_> {}

impl<'a> SharedSlice<'a> {
    pub(crate) fn new(slice: &'a mut [f32]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), owner: PhantomData }
    }

    /// Where element `offset` lies; the end of the slice is allowed.
    pub(crate) fn at(self, offset: usize) -> *mut f32 {
        assert!(offset <= self.len, "offset {offset} outside of a slice of {}", self.len);
        // SAFETY: within the slice or at its end.
        unsafe { self.start.add(offset) }
    }

    /// The `len` elements from `offset`.
    ///
    /// # Safety
    /// Nobody else reads or writes these elements while the slice returned lives.
    pub(crate) unsafe fn slice(self, offset: usize, len: usize) -> &'a mut [f32] {
        assert!(offset + len <= self.len, "{len} elements at {offset} outside of a slice of {}", self.len);
        // SAFETY: within the slice; the caller keeps the elements to itself.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(offset), len) }
    }
}
