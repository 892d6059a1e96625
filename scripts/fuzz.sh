#!/usr/bin/env bash
# Fuzzes what reads bytes from outside, each target for SECONDS (default: 60), under AddressSanitizer:
#
#     scripts/fuzz.sh [SECONDS] [TARGET...]        targets: gguf adapter chat data
#
# A failure leaves its input in fuzz/artifacts/TARGET/ and its stack on the terminal; run the built target with that file
# as its argument to see it again. What was found interesting stays in fuzz/corpus/ for the next time.
#
# The flags are those of cargo-fuzz, which would want a second toolchain; `cargo +nightly fuzz run TARGET` works on the
# same folder. RUSTC_BOOTSTRAP: see scripts/asan.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(gguf adapter chat data)
host=$(rustc -vV | sed -n 's/^host: //p')
build=${CARGO_TARGET_DIR:-$PWD/target}/fuzz

# The versions that the product has.
cp Cargo.lock fuzz/Cargo.lock
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares"
RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$build RUSTFLAGS="$(echo $coverage) --cfg fuzzing -Zsanitizer=address" \
    cargo build --release --bins --manifest-path fuzz/Cargo.toml --target "$host"

folder=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")")
trap 'rm -rf "$folder"' EXIT
for target in "${targets[@]}"; do
    mkdir -p "fuzz/corpus/$target" "fuzz/artifacts/$target"
    # The tests' own file is the seed for its reader.
    seeds=fuzz/seeds/$target
    [ "$target" = gguf ] && seeds=crates/testkit/fixtures/gguf
    # A leak is found by a long run's memory, not by the exit: the thread pool and the tables live to the end.
    TMPDIR=$folder ASAN_OPTIONS=detect_leaks=0 "$build/$host/release/$target" -max_total_time="$seconds" -timeout=20 \
        -rss_limit_mb=2048 -malloc_limit_mb=512 -verbosity=0 -print_final_stats=1 -artifact_prefix="fuzz/artifacts/$target/" \
        "fuzz/corpus/$target" "$seeds"
done
