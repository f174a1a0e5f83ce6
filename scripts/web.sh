#!/usr/bin/env bash
# Builds the browser module: WebAssembly and its JavaScript glue, into wasm/pkg. Says how large they
# are, and fails if that is more than a page should load. `web.sh clippy` lints it, in the same build.
set -euo pipefail
cd "$(dirname "$0")/.."

# What is downloaded, compressed, in bytes: never more than this. The goal is 1000000.
most=1453000
out=wasm/pkg
cargo=${CARGO:-cargo}
built=${CARGO_TARGET_DIR:-target}/wasm32-unknown-unknown/browser/wavesync_wasm.wasm

# SQLite for size, and without some of what sqlite-wasm-rs chooses: checks of arguments against
# mistaken callers in C, what is for threads, tables and functions that show SQLite's own insides.
options="-Oz"
for left_out in API_ARMOR UNLOCK_NOTIFY BYTECODE_VTAB DBPAGE_VTAB STMTVTAB OFFSET_SQL_FUNC \
  UNKNOWN_SQL_FUNCTION DBSTAT_VTAB COLUMN_METADATA; do
  options+=" -USQLITE_ENABLE_$left_out"
done
# And without what only its own tests and Tcl call, and the list of all these choices.
options+=" -DSQLITE_UNTESTABLE -DSQLITE_OMIT_TCL_VARIABLE -DSQLITE_OMIT_COMPILEOPTION_DIAGS"
export CFLAGS_wasm32_unknown_unknown="$options ${CFLAGS_wasm32_unknown_unknown:-}"
# The paths of crates' sources are in messages of panics: without the part that is this machine's.
flags=${CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS:-}
for sources in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/; do
  flags+=" --remap-path-prefix=$sources="
done
export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS=$flags

build=(--locked --profile browser -p wavesync-wasm --target wasm32-unknown-unknown)
if [ "${1:-}" = clippy ]; then
  exec scripts/wasm.sh "$cargo" clippy -q "${build[@]}" -- -D warnings
fi
scripts/wasm.sh "$cargo" build "${build[@]}"
mkdir -p "$out"
"$cargo" run --locked -q -p wavesync-bindgen -- "$built" "$out"

module=$out/wavesync_bg.wasm
total=0
for file in "$module" "$out/wavesync.js"; do
  size=$(gzip -9 <"$file" | wc -c)
  total=$((total + size))
  printf 'web: %s: %d bytes, %d compressed\n' "$file" "$(stat -c %s "$file")" "$size"
done
brotli='process.stdout.write(`${require("zlib").brotliCompressSync(require("fs").readFileSync(0)).length}`)'
printf 'web: %d bytes with brotli\n' "$(cat "$module" "$out/wavesync.js" | node -e "$brotli")"
printf 'web: %d of at most %d bytes to load\n' "$total" "$most"
[ "$total" -le "$most" ] || {
  echo "web: that is too much" >&2
  exit 1
}
