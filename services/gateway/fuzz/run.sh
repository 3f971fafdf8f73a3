#!/usr/bin/env bash
# run.sh [SECONDS] [TARGET...]: builds the fuzz targets and runs each for so long (60 s), and says how much was run and
# found. Needs a C++ compiler, for libFuzzer, and nothing of a nightly Rust: coverage is what LLVM instruments, without a
# sanitizer, as the gateway's own code is safe Rust.
# What is found stays in artifacts/, inputs that reach new code in corpus/; both are the machine's own, seeds are committed.
set -euo pipefail
cd "$(dirname "$0")"
die() { echo "fuzz: $*" >&2; exit 1; }
seconds=${1:-60}
shift || true
[[ $seconds =~ ^[1-9][0-9]*$ ]] || die "FUZZ_SECONDS must be a whole number of seconds, at least 1, not '$seconds'"
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(request answer events usage)
command -v cargo >/dev/null || die "cargo is missing: install Rust with rustup, https://rustup.rs"
command -v "${CXX:-c++}" >/dev/null ||
    die "a C++ compiler is missing, libFuzzer is built with it: install the package g++, e.g. apt-get install g++"
host=$(rustc -vV | sed -n 's/^host: //p')
# With --target, build scripts are built without these.
export RUSTFLAGS='--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Clink-dead-code'
cargo build --locked --release --target "$host"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for target in "${targets[@]}"; do
    mkdir -p "corpus/$target" "artifacts/$target"
    [ -z "$(ls -A "artifacts/$target")" ] ||
        die "artifacts/$target holds what an earlier run found: mend that first, or take it away"
    seeds=../tests/data/vllm
    [ ! -d "seeds/$target" ] || seeds=seeds/$target
    echo "== $target: $seconds s"
    ended=0
    "target/$host/release/$target" "corpus/$target" "$seeds" -max_total_time="$seconds" -max_len=16384 -timeout=10 \
        -rss_limit_mb=2048 -artifact_prefix="artifacts/$target/" -print_final_stats=1 >"$log" 2>&1 || ended=$?
    # The last state has the coverage: edges that were reached, and features.
    grep -E 'INFO: seed corpus|ERROR|panicked|assertion|SUMMARY|Test unit' "$log" || true
    grep -E '^#[0-9]+.* cov: ' "$log" | tail -n 1 || true
    grep -E '^Done|stat::number_of_executed_units|stat::average_exec_per_sec|stat::peak_rss_mb' "$log" || true
    [ "$ended" = 0 ] || { tail -n 20 "$log"; die "$target ended with $ended; what it found is in $PWD/artifacts/$target"; }
done
echo "fuzz: nothing was found"
