#!/usr/bin/env bash
# Runs a command with a C compiler and archiver for WebAssembly in the environment.
#
#   scripts/wasm.sh cargo build -p wavesync-wasm --target wasm32-unknown-unknown
set -euo pipefail

# The C shim of sqlite-wasm-rs uses [[noreturn]], which clang understands in C since version 17.
oldest=17

if [ -z "${CC_wasm32_unknown_unknown:-}" ]; then
  for clang in clang-22 clang-21 clang-20 clang-19 clang-18 clang-17 clang; do
    command -v "$clang" >/dev/null || continue
    major=$("$clang" -dumpversion | cut -d. -f1)
    [ "$major" -ge "$oldest" ] || continue
    export CC_wasm32_unknown_unknown=$clang
    break
  done
fi
if [ -z "${CC_wasm32_unknown_unknown:-}" ]; then
  echo "wasm: no clang $oldest or newer; run make setup, or set CC_wasm32_unknown_unknown" >&2
  exit 1
fi
if [ -z "${AR_wasm32_unknown_unknown:-}" ]; then
  version=${CC_wasm32_unknown_unknown#clang}
  for ar in "llvm-ar$version" llvm-ar llvm-ar-22 llvm-ar-21 llvm-ar-20 llvm-ar-19 llvm-ar-14; do
    command -v "$ar" >/dev/null || continue
    export AR_wasm32_unknown_unknown=$ar
    break
  done
fi
if [ -z "${AR_wasm32_unknown_unknown:-}" ]; then
  echo "wasm: no llvm-ar found; run make setup, or set AR_wasm32_unknown_unknown" >&2
  exit 1
fi
exec "$@"
