#!/bin/sh
# Loads the extension into every kind of host: what `cargo test -p wavesync` covers (the sqlite3
# shell, Debian's python3), and the hosts that have to be fetched or compiled first (apsw with a
# SQLite of its own, programs in C, Rust and for Node, a SQLite that is too old, one that is just
# new enough).
set -eu

cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-$PWD/target}
libraries=$(mktemp -d)
trap 'rm -rf "$libraries"' EXIT

# A host that hangs fails here, and not when the patience of whoever started all this ends.
bounded() {
    timeout --verbose -k 10 600 "$@"
}

fail() {
    echo "ext-test: $*" >&2
    exit 1
}

cargo test -p wavesync
cargo build -p wavesync --lib --examples
cp "$target/debug/libwavesync.so" "$libraries/wavesync.so"
cp "$target/debug/examples/libplumbing.so" "$libraries/plumbing.so"

if ! [ -x "$target/venv/bin/python" ]; then
    /usr/bin/python3 -m venv "$target/venv"
fi
"$target/venv/bin/python" -c 'import apsw' 2>/dev/null ||
    "$target/venv/bin/pip" install --quiet apsw
bounded env RUST_BACKTRACE=0 "$target/venv/bin/python" ext/tests/host.py apsw "$libraries"
bounded /usr/bin/python3 ext/tests/engine.py sqlite3 "$libraries"
bounded "$target/venv/bin/python" ext/tests/engine.py apsw "$libraries"

(cd ext/tests/members/app && cargo build --locked --quiet --target-dir "$target")
bounded /usr/bin/python3 ext/tests/meet.py "$libraries/wavesync.so" "$target"

for host in too-old old; do
    (cd "ext/tests/hosts/$host" && cargo build --locked --quiet --target-dir "$target")
done
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
question='SELECT wavesync_version()'

told=$("$target/debug/host-too-old" "$libraries/wavesync.so" "$question") ||
    fail "the host with SQLite 3.33.0 did not end normally"
case $told in
*"refused: "*"wavesync: SQLite 3.34.1 or newer is needed; this host has 3.33.0. Update SQLite"*) ;;
*) fail "SQLite 3.33.0 was not refused clearly: $told" ;;
esac
echo "ok too-old: $told"

told=$("$target/debug/host-old" "$libraries/wavesync.so" "$question") ||
    fail "the host with SQLite 3.35.4 did not end normally"
case $told in
*"loaded $version") ;;
*) fail "SQLite 3.35.4 could not load it: $told" ;;
esac
echo "ok old: $told"
