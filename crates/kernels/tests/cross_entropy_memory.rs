//! The fused loss never holds the logits of all tokens: its working memory, counted by the allocator. A binary of its own,
//! because the allocator counts what the whole process takes.
#![expect(clippy::expect_used, reason = "a test that cannot start has failed")]

use std::alloc::System;

use fedpipe_kernels::{CountingAllocator, FrozenMatrix, linear_cross_entropy};

#[global_allocator]
static ALLOCATOR: CountingAllocator<System> = CountingAllocator::new(System);

const HIDDEN: usize = 64;

/// Most bytes that a loss takes at once beyond its inputs and outputs, on two fresh threads.
fn working_memory(tokens: usize, vocabulary: usize) -> usize {
    let x = vec![0.1f32; tokens * HIDDEN];
    let mut dx = vec![0f32; x.len()];
    let weight = FrozenMatrix::f32(vocabulary, HIDDEN, &vec![0.01; vocabulary * HIDDEN]);
    let targets: Vec<u32> = (0..tokens as u32).map(|token| token % vocabulary as u32).collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("two threads");
    ALLOCATOR.reset_peak();
    let before = ALLOCATOR.current_bytes();
    let loss = pool.install(|| linear_cross_entropy(&x, &weight, None, &targets, Some(&mut dx)));
    assert!((loss.mean - (vocabulary as f64).ln()).abs() < 1e-3, "equal logits: {loss:?}");
    ALLOCATOR.peak_bytes() - before
}

#[test]
fn the_logits_of_all_tokens_are_never_held() {
    const TILE: usize = 1024 * (1024 + HIDDEN) * 4;
    // The left side of a product, packed, and a tile of its right side on each of two threads.
    const PRODUCT: usize = 2 * 1024 * 1024 * 4 + 2 * (64 * 1024 * 4 + (64 << 10));
    let (tokens, vocabulary) = (3000, 9000);
    let logits = tokens * vocabulary * 4;
    let bound = |tokens: usize| TILE + PRODUCT + 1024 * 24 + 4 * tokens;
    assert!(2 * bound(tokens) < logits, "the bound says something");
    let taken = working_memory(tokens, vocabulary);
    assert!(taken <= bound(tokens), "{taken} bytes of {} that are documented", bound(tokens));
    let doubled = working_memory(2 * tokens, 2 * vocabulary);
    assert!(doubled <= bound(2 * tokens), "{doubled} bytes of {} with everything doubled", bound(2 * tokens));
}
