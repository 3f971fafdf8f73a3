#!/usr/bin/env bash
# run.sh [SECONDS] [TARGET...]: builds the fuzz targets and runs each for so long (60 s). Needs a C++ compiler and nothing
# of a nightly Rust: coverage is what LLVM instruments, without a sanitizer, as the gateway's own code is safe Rust.
# What is found stays in artifacts/, inputs that reach new code in corpus/; both are the machine's own, seeds are committed.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-60}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(request events usage)
host=$(rustc -vV | sed -n 's/^host: //p')
# With --target, build scripts are built without these.
export RUSTFLAGS='--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Clink-dead-code'
cargo build --locked --release --target "$host"
for target in "${targets[@]}"; do
    mkdir -p "corpus/$target" "artifacts/$target"
    seeds=../tests/data/vllm
    [ "$target" != request ] || seeds=seeds/request
    echo "== $target: $seconds s"
    "target/$host/release/$target" "corpus/$target" "$seeds" -max_total_time="$seconds" -max_len=16384 -timeout=10 \
        -rss_limit_mb=2048 -artifact_prefix="artifacts/$target/" -print_final_stats=1 -verbosity=1 2>&1 |
        grep -E 'INFO: seed corpus|^Done|stat::|ERROR|panicked|SUMMARY|Test unit' || true
    [ -z "$(ls -A "artifacts/$target")" ] || { echo "found something: services/gateway/fuzz/artifacts/$target"; exit 1; }
done
