//! Counting what a process allocates, and keeping what it frees. Here because neither can be written without `unsafe`.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A global allocator that counts the bytes in use and the most that were in use at once.
#[derive(Debug)]
pub struct CountingAllocator<A> {
    inner: A,
    current: AtomicUsize,
    peak: AtomicUsize,
    /// Smallest size that is counted below; by default none is.
    large: AtomicUsize,
    counted: AtomicUsize,
}

impl<A> CountingAllocator<A> {
    /// Counts what goes through `inner`.
    pub const fn new(inner: A) -> Self {
        Self {
            inner,
            current: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            large: AtomicUsize::new(usize::MAX),
            counted: AtomicUsize::new(0),
        }
    }

    /// Bytes allocated now.
    pub fn current_bytes(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// Most bytes allocated at once since the last reset.
    pub fn peak_bytes(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    /// Starts a new peak at what is allocated now.
    pub fn reset_peak(&self) {
        self.peak.store(self.current_bytes(), Ordering::Relaxed);
    }

    /// Counts from zero the allocations of `bytes` or more from now on.
    pub fn count_above(&self, bytes: usize) {
        self.large.store(bytes, Ordering::Relaxed);
        self.counted.store(0, Ordering::Relaxed);
    }

    /// Allocations since [`CountingAllocator::count_above`].
    pub fn counted(&self) -> usize {
        self.counted.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        if bytes >= self.large.load(Ordering::Relaxed) {
            self.counted.fetch_add(1, Ordering::Relaxed);
        }
        let current = self.current.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(current, Ordering::Relaxed);
    }

    fn subtract(&self, bytes: usize) {
        self.current.fetch_sub(bytes, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to `inner` with the caller's own arguments, and its pointers are handed back unchanged; counting
// neither allocates nor unwinds.
unsafe impl<A: GlobalAlloc> GlobalAlloc for CountingAllocator<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc`.
        let pointer = unsafe { self.inner.alloc(layout) };
        if !pointer.is_null() {
            self.add(layout.size());
        }
        pointer
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        let pointer = unsafe { self.inner.alloc_zeroed(layout) };
        if !pointer.is_null() {
            self.add(layout.size());
        }
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`; the pointer came from `inner`.
        unsafe { self.inner.dealloc(pointer, layout) };
        self.subtract(layout.size());
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `realloc`; the pointer came from `inner`.
        let moved = unsafe { self.inner.realloc(pointer, layout, new_size) };
        if !moved.is_null() {
            // Both may be in use for a moment, when the block had to move.
            self.add(new_size);
            self.subtract(layout.size());
        }
        moved
    }
}

/// `mi_option_purge_delay`, which the bindings do not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Tells mimalloc, where it is the global allocator, to keep freed memory instead of handing it back to the system.
///
/// Every training step allocates what the one before it freed. Handed back, it is faulted in again page by page: measured
/// on R8 with MiniLM, 4,000 tokens a second become 3,300.
pub fn keep_freed_memory() {
    // SAFETY: setting an option writes one integer; mimalloc permits it at any time from any thread.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::alloc::System;

    /// The option's number is the C library's, and a new release might count otherwise: before, it holds the default of
    /// the purge delay, a second.
    #[test]
    fn memory_is_kept_from_then_on() {
        // SAFETY: reading an option reads one integer.
        let delay_ms = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(delay_ms(), 1000);
        keep_freed_memory();
        assert_eq!(delay_ms(), -1);
    }

    #[test]
    fn bytes_in_use_and_their_peak_are_counted() {
        let heap = CountingAllocator::new(System);
        let (small, large) = (Layout::array::<u8>(100).unwrap(), Layout::array::<u8>(1000).unwrap());
        // SAFETY: the layouts are not empty, and each block is freed once with the layout that it has by then.
        unsafe {
            let a = heap.alloc(small);
            let b = heap.alloc_zeroed(large);
            assert_eq!((heap.current_bytes(), heap.peak_bytes()), (1100, 1100));
            heap.dealloc(b, large);
            assert_eq!((heap.current_bytes(), heap.peak_bytes()), (100, 1100));
            heap.reset_peak();
            let a = heap.realloc(a, small, 300);
            assert_eq!((heap.current_bytes(), heap.peak_bytes()), (300, 400));
            heap.dealloc(a, Layout::array::<u8>(300).unwrap());
            assert_eq!(heap.current_bytes(), 0);
            assert_eq!(heap.counted(), 0);
            heap.count_above(1000);
            let (a, b) = (heap.alloc(small), heap.alloc(large));
            assert_eq!(heap.counted(), 1);
            heap.dealloc(a, small);
            heap.dealloc(b, large);
        }
    }
}
