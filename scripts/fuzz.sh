#!/usr/bin/env bash
# fuzz.sh [TARGET...]: runs fuzz targets, all of them without arguments, each for TIME seconds.
#
#   TIME=60        seconds for each target
#   KEEP=1         afterwards the inputs that reach something new are put into fuzz/corpus, which is committed
#   SANITIZER=…    address with a nightly toolchain, else none
#
# What a run finds out is kept in the target directory and used by the next one. An input that fails is kept
# in fuzz/crashers/TARGET: commit it, the tests of core read it from then on.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'fuzz: %s\n' "$*"; }

cargo fuzz --version >/dev/null 2>&1 || {
  say "cargo-fuzz is missing: it builds and runs the targets. Installing it takes a minute"
  cargo install -q --locked cargo-fuzz
}
if rustup run nightly rustc --version >/dev/null 2>&1 || rustup toolchain install nightly --profile minimal >/dev/null 2>&1; then
  export RUSTUP_TOOLCHAIN=nightly
  sanitizer=${SANITIZER:-address}
else
  say "there is no nightly toolchain: running without a sanitizer"
  export RUSTC_BOOTSTRAP=1
  sanitizer=${SANITIZER:-none}
fi

# The committed corpus stays small: the examples, and of what was found at most so many files, of all sizes.
KEPT_MAX=80
keep() { # keep FROM CORPUS
  local count step
  count=$(find "$1" -type f | wc -l)
  step=$(((count + KEPT_MAX - 1) / KEPT_MAX))
  find "$2" -type f ! -name 'example-*' -delete
  find "$1" -type f -printf '%s %p\n' | sort -n | awk -v step="$step" 'NR % step == 0 { print $2 }' |
    while read -r file; do cp "$file" "$2/$(basename "$file")"; done
}

seconds=${TIME:-60}
target_dir=${CARGO_TARGET_DIR:-target}
found=$target_dir/fuzz-corpus
mapfile -t targets < <(if [ $# -gt 0 ]; then printf '%s\n' "$@"; else cargo fuzz list; fi)
cargo fuzz build --sanitizer "$sanitizer"
failed=()
for target in "${targets[@]}"; do
  mkdir -p "$found/$target" "fuzz/corpus/$target" "fuzz/crashers/$target"
  say "$target for $seconds s"
  log=$(mktemp)
  # The longest input is that of a few frames: what is looked for lies in how they are read.
  if ! cargo fuzz run --sanitizer "$sanitizer" "$target" "$found/$target" "fuzz/corpus/$target" -- \
    -max_total_time="$seconds" -max_len=8192 -timeout=20 -rss_limit_mb=3072 \
    -artifact_prefix="fuzz/crashers/$target/" >"$log" 2>&1; then
    tail -n 60 "$log"
    failed+=("$target")
  fi
  grep -E '^#[0-9]+.*(DONE|INITED)' "$log" | tail -n 1 || true
  rm -f "$log"
  rmdir --ignore-fail-on-non-empty "fuzz/crashers/$target" fuzz/crashers
  if [ -n "${KEEP:-}" ]; then
    merged=$(mktemp -d)
    cargo fuzz run --sanitizer "$sanitizer" "$target" "$merged" "fuzz/corpus/$target" "$found/$target" -- \
      -set_cover_merge=1 -max_len=1024 >/dev/null 2>&1
    keep "$merged" "fuzz/corpus/$target"
    rm -rf "$merged"
  fi
done
if [ "${#failed[@]}" -gt 0 ]; then
  say "failed: ${failed[*]}; the inputs are in fuzz/crashers"
  exit 1
fi
say "${#targets[@]} targets ran, nothing failed"
