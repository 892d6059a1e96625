#!/usr/bin/env bash
# Runs the kernels' tests under AddressSanitizer. All `unsafe` of the workspace is in that crate, and its tests walk every
# path that the processor supports, whatever FEDPIPE_KERNELS says. Arguments go to `cargo test`.
#
# RUSTC_BOOTSTRAP, because the pinned toolchain has the sanitizer's runtime but calls the flag unstable, and a second
# toolchain would be one more thing to fetch and to pin. The flag changes nothing of the language. With --target, build
# scripts and procedural macros are built without it.
set -euo pipefail
cd "$(dirname "$0")/.."

export RUSTC_BOOTSTRAP=1
# Working memory exactly as long as asked for, see crates/kernels/src/scratch.rs.
export RUSTFLAGS="-Zsanitizer=address --cfg exact_scratch"
export RUSTDOCFLAGS=$RUSTFLAGS
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/asan
exec cargo test -p fedpipe-kernels --target "$(rustc -vV | sed -n 's/^host: //p')" "$@"
