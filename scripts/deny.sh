#!/usr/bin/env bash
# What may be in the dependency tree, as deny.toml says. The bans, the single versions and the
# licences are checked with cargo alone, always; with cargo-deny installed it checks its part too.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(wavesync-core wavesync-transport wavesync-net wavesync wavesync-relay)
banned=$(sed -nE 's/^ *\{ crate = "([^"]+)".*/\1/p' deny.toml)
allowed=$(sed -n '/^\[licenses\]/,/^\[bans\]/p' deny.toml | sed -nE 's/^ *"([^"]+)",?$/\1/p')
# Two of these in one build would be two SQLites, or two networks that do not fit together.
single=(rusqlite libsqlite3-sys libp2p-core libp2p-swarm wavesync-core)
status=0
complain() {
  printf 'deny: %s\n' "$*" >&2
  status=1
}

tree() { # tree PACKAGE [OPTIONS of cargo tree]: "name version|licence" a line
  local package=$1
  shift
  if [ "$package" = wavesync-wasm ]; then
    set -- --target wasm32-unknown-unknown "$@"
  fi
  cargo tree --locked -q -p "$package" -e normal,build --prefix none --format '{p}|{l}' "$@" | sed -E 's/ \(\*\)$//; s/ \([^|]*\)\|/|/; s/ \(proc-macro\)//' | sort -u
}

# Reads "expression" lines; prints those that the allowed licences do not satisfy.
unsatisfied() {
  awk -v allowed="$allowed" '
    BEGIN { count = split(allowed, names, "\n"); for (i = 1; i <= count; i++) ok[names[i]] = 1 }
    {
      text = $0; gsub(/\//, " OR ", text); gsub(/[()]/, " & ", text)
      gsub(/ WITH /, "~", text); words = split(text, word, " "); expression = ""
      for (i = 1; i <= words; i++) {
        if (word[i] == "OR") value = "|"
        else if (word[i] == "AND") value = "+"
        else if (word[i] == "(" || word[i] == ")") value = word[i]
        else { name = word[i]; gsub(/~/, " WITH ", name); value = (name in ok) ? "1" : "0" }
        expression = expression value
      }
      while (expression !~ /^[01]$/) {
        before = expression
        gsub(/\(0\)/, "0", expression); gsub(/\(1\)/, "1", expression)
        if (match(expression, /[01]\+[01]/)) {
          part = substr(expression, RSTART, 3)
          expression = substr(expression, 1, RSTART - 1) (part == "1+1" ? "1" : "0") substr(expression, RSTART + 3)
        } else if (match(expression, /[01]\|[01]/)) {
          part = substr(expression, RSTART, 3)
          expression = substr(expression, 1, RSTART - 1) (part == "0|0" ? "0" : "1") substr(expression, RSTART + 3)
        }
        if (expression == before) break
      }
      if (expression != "1") print
    }'
}

for package in "${packages[@]}" wavesync-wasm; do
  lines=$(tree "$package")
  [ -n "$lines" ] || complain "$package: cargo tree says nothing"
  names=$(cut -d' ' -f1 <<<"$lines")
  for crate in $banned; do
    grep -qx -- "$crate" <<<"$names" || continue
    # One that only these may use.
    wrappers=$(sed -nE 's/^ *\{ crate = "'"$crate"'", wrappers = \[([^]]*)\].*/\1/p' deny.toml | tr -d '" ' | tr ',' '\n')
    users=$(tree "$package" -i "$crate" --depth 1 | cut -d' ' -f1 | grep -vx -- "$crate")
    if grep -qvxF -- "${wrappers:-none}" <<<"$users"; then
      complain "$package depends on $crate, which deny.toml bans"
    fi
  done
  for crate in "${single[@]}"; do
    versions=$(grep -E "^$crate v" <<<"$lines" | cut -d'|' -f1 | sort -u | wc -l) || true
    [ "$versions" -le 1 ] || complain "$package has $versions versions of $crate"
  done
  while IFS= read -r licence; do
    [ -n "$licence" ] || continue
    complain "$package: licence '$licence' is not allowed: $(grep -F "|$licence" <<<"$lines" | cut -d'|' -f1 | tr '\n' ' ')"
  done < <(cut -d'|' -f2 <<<"$lines" | sort -u | unsatisfied)
  if grep -qE '\|$' <<<"$lines"; then complain "$package: no licence: $(grep -E '\|$' <<<"$lines" | tr '\n' ' ')"; fi
  printf 'deny: %s: %d crates, bans, versions and licences checked\n' "$package" "$(wc -l <<<"$lines")"
done

if cargo deny --version >/dev/null 2>&1; then
  cargo deny --locked check bans licenses sources || status=1
  if ! cargo deny --locked check advisories; then
    if cargo deny --locked fetch db >/dev/null 2>&1; then
      complain "advisories apply (above)"
    else
      printf 'deny: ADVISORIES NOT CHECKED: their database cannot be fetched from here\n' >&2
    fi
  fi
else
  printf 'deny: ADVISORIES NOT CHECKED: cargo-deny is not installed (make setup SETUP_DENY=1 installs it)\n' >&2
fi
exit "$status"
