#!/usr/bin/env bash
# Installs what the build and the tests need and a fresh Debian machine with a Rust toolchain lacks.
# Says what and why. Does nothing, and downloads nothing, when all of it is there.
#
#   SETUP_DENY=1   also compiles and installs cargo-deny (a few minutes)
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }
fail() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}

# cargo may be installed for this user and not be on PATH yet.
if ! command -v cargo >/dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then
  fail "cargo is in ~/.cargo/bin, which is not on PATH. Run: . ~/.cargo/env"
fi
command -v cargo >/dev/null || fail "there is no Rust toolchain. Install one from https://rustup.rs and run this again"

packages=()
need() { # need PACKAGE REASON
  case " ${packages[*]:-} " in *" $1 "*) return ;; esac
  packages+=("$1")
  say "$1 is missing: $2"
}

command -v cc >/dev/null || need build-essential "links Rust programs and compiles SQLite for the tests"
command -v sqlite3 >/dev/null || need sqlite3 "the shell that the demo and the scenarios drive"
compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null || compgen -G '/usr/lib/*/libclang*.so*' >/dev/null ||
  need libclang-dev "bindgen reads SQLite's headers with it (sqlite-loadable)"
scripts/wasm.sh true 2>/dev/null || {
  need clang-19 "compiles SQLite's C to WebAssembly (17 is the oldest that can)"
  need llvm-19 "llvm-ar, for archives of WebAssembly objects"
}
[ -e /usr/include/sqlite3.h ] || need libsqlite3-dev "a program in C is a host of the extension's load tests"
/usr/bin/python3 -c 'import ensurepip, sqlite3' 2>/dev/null ||
  { need python3 "a host of the extension's load tests" && need python3-venv "apsw, another host, gets installed there"; }

command -v chromium >/dev/null || need chromium "the browser that the tests of the browser build drive"
command -v node >/dev/null || need nodejs "drives the browser, and serves it the pages"
command -v npm >/dev/null || need npm "fetches playwright-core, with which node drives the browser"
command -v openssl >/dev/null || need openssl "a certificate for the pages that are tested with https"

if [ "${#packages[@]}" -gt 0 ]; then
  command -v apt-get >/dev/null || fail "this is not Debian: install the packages above with your own package manager"
  if [ "$(id -u)" = 0 ]; then
    as_root=()
  elif command -v sudo >/dev/null; then
    as_root=(sudo)
    say "sudo asks for your password to run apt-get"
  else
    fail "run this as root: apt-get install ${packages[*]}"
  fi
  "${as_root[@]}" apt-get update -q
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${packages[@]}"
fi

for tool in fmt clippy; do
  cargo "$tool" --version >/dev/null 2>&1 && continue
  component=$([ "$tool" = fmt ] && echo rustfmt || echo clippy)
  say "$component is missing: make check runs it"
  command -v rustup >/dev/null || fail "install $component for your Rust toolchain (it was not installed by rustup)"
  rustup component add "$component"
done

target=wasm32-unknown-unknown
if [ ! -d "$(rustc --print target-libdir --target "$target")" ]; then
  say "the Rust standard library for $target is missing: the browser build needs it"
  command -v rustup >/dev/null || fail "install it for your Rust toolchain (it was not installed by rustup)"
  rustup target add "$target"
fi

if [ "${SETUP_DENY:-0}" = 1 ] && ! cargo deny --version >/dev/null 2>&1; then
  say "cargo-deny is missing: checks licences and advisories (SETUP_DENY=1)"
  cargo install cargo-deny --locked
fi
