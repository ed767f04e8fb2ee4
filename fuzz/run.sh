#!/usr/bin/env bash
# Builds the fuzz targets and runs each for some seconds. Fails at the first finding and says where its input is.
#
#   fuzz/run.sh             each target for 20 s
#   fuzz/run.sh 600         each for ten minutes
#   fuzz/run.sh 600 scan    one of them
#
# A stable tool chain is enough: what cargo-fuzz asks nightly Rust for is the address sanitizer, and the code under test
# has no `unsafe` outside src/sys. Coverage comes from passes that rustc's LLVM has, libFuzzer from its crate (wants g++).
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-20}
shift || true
host=$(rustc -vV | sed -n 's/^host: //p')
coverage=-Cllvm-args=-sanitizer-coverage
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module $coverage-level=4 $coverage-inline-8bit-counters $coverage-pc-table \
$coverage-trace-compares -Cdebug-assertions -Coverflow-checks"
export CARGO_TARGET_DIR=$PWD/target
# With --target build scripts and macros go without these flags.
cargo build --release --target "$host" --bins
targets=("$@")
if [ ${#targets[@]} = 0 ]; then
    for file in fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi
mkdir -p artifacts corpus
for target in "${targets[@]}"; do
    # What libFuzzer starts from: texts that mean something, so that short runs get somewhere.
    mkdir -p "corpus/$target" "target/seeds/$target"
    case $target in
        parse | plan) find ../testdata -name Dockerfile -o -name '*.test' | while read -r file; do
            cp "$file" "target/seeds/$target/$(tr / _ <<<"${file#../}")"
        done ;;
        scan | apply) tar --format=pax -cf "target/seeds/$target/pax.tar" -C .. testdata/copy
            tar --format=gnu -cf "target/seeds/$target/gnu.tar" -C .. testdata/ignore ;;
        archive) cp ../testdata/copy/f.tar.xz ../testdata/layers/*.gz "target/seeds/$target" ;;
    esac
    echo "$target, $seconds s"
    if ! "target/$host/release/$target" "corpus/$target" "target/seeds/$target" -max_total_time="$seconds" -timeout=10 \
        -rss_limit_mb=2048 -artifact_prefix="artifacts/$target-" -verbosity=0 -print_final_stats=1 >"target/$target.log" 2>&1
    then
        tail -n 40 "target/$target.log" >&2
        echo "$target: see fuzz/artifacts" >&2
        exit 1
    fi
    grep number_of_executed_units "target/$target.log" || true
done
