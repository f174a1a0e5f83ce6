#!/usr/bin/env bash
# Builds the browser module: WebAssembly and its JavaScript glue, into wasm/pkg. Says how large they
# are, and fails if that is more than a page should load.
#
#   WASM_OPT=…   a wasm-opt to use, of binaryen 124 or newer (older ones cannot read the module);
#                without it the module stays as the compiler made it
set -euo pipefail
cd "$(dirname "$0")/.."

# What is downloaded, compressed, in bytes: never more than this. The goal is 1000000.
most=1600000
out=${1:-wasm/pkg}
cargo=${CARGO:-cargo}
built=${CARGO_TARGET_DIR:-target}/wasm32-unknown-unknown/browser/wavesync_wasm.wasm

scripts/wasm.sh "$cargo" build --locked --profile browser -p wavesync-wasm --target wasm32-unknown-unknown
mkdir -p "$out"
"$cargo" run --locked -q -p wavesync-bindgen -- "$built" "$out"

optimiser=${WASM_OPT:-}
module=$out/wavesync_bg.wasm
if [ -n "$optimiser" ]; then
  "$optimiser" -Os --all-features --disable-custom-descriptors "$module" -o "$module.small"
  mv "$module.small" "$module"
fi

total=0
for file in "$module" "$out/wavesync.js"; do
  size=$(gzip -9 <"$file" | wc -c)
  total=$((total + size))
  printf 'web: %s: %d bytes, %d compressed\n' "$file" "$(stat -c %s "$file")" "$size"
done
printf 'web: %d of at most %d bytes to load\n' "$total" "$most"
[ "$total" -le "$most" ] || {
  echo "web: that is too much" >&2
  exit 1
}
