#!/usr/bin/env bash
# Shows wavesync end to end: two sqlite3 shells on two files, a full one and an empty one, become
# equal and stay so. Everything is checked; any mismatch ends with a status other than 0.
#
#   demo/run.sh            the bundled garden club (demo/sample.sql)
#   demo/run.sh FILE.db    a copy of any other database; the file itself is only read
#
# Everything runs on loopback and needs no network. SQLITE3 names another sqlite3 shell.
set -euo pipefail
export LC_ALL=C.UTF-8

here=$(cd "$(dirname "$0")/.." && pwd)
source_db=${1:-}
sqlite=${SQLITE3:-sqlite3}
wait_seconds=30
[ -z "$source_db" ] || wait_seconds=${DEMO_WAIT_SECONDS:-300}

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
  bold=$'\e[1m' dim=$'\e[2m' off=$'\e[0m' lane_a=$'\e[36m' lane_b=$'\e[35m' good=$'\e[32m' bad=$'\e[31m'
else
  bold='' dim='' off='' lane_a='' lane_b='' good='' bad=''
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/wavesync-demo.XXXXXX")
declare -A pid input output
answer='' marker=0 mismatches=0

finish() {
  local status=$? name
  trap - EXIT
  for name in "${!pid[@]}"; do kill "${pid[$name]}" 2>/dev/null || true; done
  rm -rf "$work"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '%s\n' "$*"; }
heading() { printf '\n%s%s%s\n' "$bold" "$*" "$off"; }
fail() {
  printf '\n%s✗ %s%s\n' "$bad" "$*" "$off" >&2
  local name
  for name in a b; do
    [ -n "${pid[$name]:-}" ] || continue
    ask "$name" "SELECT level, code, message, hint FROM wavesync_events ORDER BY at DESC LIMIT 5;" 5 \
      2>/dev/null || true
    printf '%s.db, newest events:\n%s\n' "$name" "$answer" >&2
  done
  exit 1
}

# Microseconds.
now() { printf '%s' "${EPOCHREALTIME/[.,]/}"; }
milliseconds() { local us=$(($2 - $1)); printf '%d.%d ms' $((us / 1000)) $((us % 1000 / 100)); }
thousands() { printf "%s" "$1" | sed -E ':a; s/([0-9])([0-9]{3})($|,)/\1,\2\3/; ta'; }

# A sqlite3 process that is talked to through two pipes.
open_shell() {
  local name=$1 to from
  rm -f "$work/$name.in" "$work/$name.out"
  mkfifo "$work/$name.in" "$work/$name.out"
  (cd "$work" && exec "$sqlite" -batch "$name.db") <"$work/$name.in" >"$work/$name.out" 2>&1 &
  pid[$name]=$!
  exec {to}>"$work/$name.in" {from}<"$work/$name.out"
  input[$name]=$to output[$name]=$from
}

# ask NAME SQL [SECONDS]: leaves what the shell printed in $answer.
ask() {
  local name=$1 sql=$2 limit=${3:-30} line end
  marker=$((marker + 1))
  answer=''
  end=$((SECONDS + limit))
  printf '%s\n.print "@@ %d"\n' "$sql" "$marker" >&"${input[$name]}" || return 1
  while :; do
    local left=$((end - SECONDS))
    [ "$left" -gt 0 ] || return 1
    IFS= read -r -t "$left" -u "${output[$name]}" line || return 1
    [ "$line" != "@@ $marker" ] || break
    answer+=${answer:+$'\n'}$line
  done
}

# Must be answered, and without an error.
must() {
  ask "$@" || fail "the shell on $1.db did not answer in time: $2"
  case $answer in
    "Error: "* | "Error near"* | "Error: near"* | "Parse error"* | "Runtime error"*) fail "$1.db: $answer" ;;
  esac
}

lane() { if [ "$1" = a ]; then printf '%s' "$lane_a"; else printf '%s' "$lane_b"; fi; }
typed() { printf '  %s%s.db │%s %s\n' "$(lane "$1")" "$1" "$off" "$2"; }
printed() {
  local line
  while IFS= read -r line; do
    [ -z "$line" ] || printf '  %s     │%s   %s%s%s\n' "$(lane "$1")" "$off" "$dim" "$line" "$off"
  done <<<"$2"
}

# show NAME SQL [SECONDS]: as a person at the terminal sees it, with the time it took.
show() {
  local began
  typed "$1" "$2"
  began=$(now)
  must "$@"
  local took
  took=$(milliseconds "$began" "$(now)")
  [ -z "$answer" ] || printed "$1" "$answer   ($took)"
}

# seen NAME SQL VALUE: repeats until the shell prints the value.
seen() {
  local end=$((SECONDS + 10))
  until must "$1" "$2" && [ "$answer" = "$3" ]; do
    [ "$SECONDS" -lt "$end" ] || fail "$1.db still does not show '$3' (it shows '$answer')"
  done
}

# edit FROM TO UPDATE SELECT VALUE: types an edit here, watches it appear there.
edit() {
  local from=$1 to=$2 update=$3 select=$4 value=$5 began took
  typed "$from" "$update"
  must "$from" "$update"
  began=$(now)
  seen "$to" "$select" "$value"
  took=$(milliseconds "$began" "$(now)")
  typed "$to" "$select"
  printed "$to" "$value   (there $took after the commit)"
}

quote() { printf "'%s'" "${1//\'/\'\'}"; }
# A name as SQL text, quoted only where it must be.
identifier() {
  if [[ $1 =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] && "$sqlite" -batch :memory: "CREATE TABLE $1($1)" 2>/dev/null; then
    printf '%s' "$1"
  else
    printf '"%s"' "${1//\"/\"\"}"
  fi
}

# Reads a file through a shell that loads nothing.
read_file() {
  local file=$work/$1.db
  shift
  "$sqlite" -batch "$file" ".timeout 5000" "$@"
}
user_tables="SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
  AND name NOT LIKE '\\_\\_wavesync\\_%' ESCAPE '\\' AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name"

# The rows of a table as text, in an order that depends on nothing but the rows.
rows_of() {
  local columns
  columns=$(read_file "$1" "SELECT group_concat(rank) FROM (SELECT row_number() OVER () AS rank FROM pragma_table_xinfo($(quote "$2")) WHERE hidden <> 1)")
  read_file "$1" ".mode quote" "SELECT * FROM $(identifier "$2") ORDER BY $columns;" 2>&1
}

# Compares every table and says so, one a line.
compare() {
  local table left right count verdict reason total=0 equal=0
  printf '  %s%-28s %12s %12s%s\n' "$dim" table 'rows in a' 'rows in b' "$off"
  while IFS= read -r table; do
    must a "SELECT coalesce(reason, '') FROM wavesync_tables WHERE name = $(quote "$table") AND NOT tracked;"
    reason=$answer
    left=$(read_file a "SELECT count(*) FROM $(identifier "$table")")
    right=$(read_file b "SELECT count(*) FROM $(identifier "$table")" 2>/dev/null) || right=none
    if [ -n "$reason" ]; then
      verdict="${dim}not synced: $reason$off"
    elif [ "$right" != none ] && [ "$(rows_of a "$table" | sha256sum)" = "$(rows_of b "$table" | sha256sum)" ]; then
      verdict="${good}EQUAL$off" equal=$((equal + 1)) total=$((total + 1))
    else
      verdict="${bad}DIFFERENT$off" mismatches=$((mismatches + 1)) total=$((total + 1))
    fi
    printf '  %-28s %12s %12s   %s\n' "$table" "$(thousands "$left")" "$(thousands "$right")" "$verdict"
  done < <(read_file a "$user_tables;")
  [ "$total" -gt 0 ] || fail "no table of this database can be synced (the reasons stand above)"
  [ "$equal" = "$total" ] || fail "$((total - equal)) of $total tables differ"
  say "  ${good}✓$off all $total tables equal"
}

# Each side must see the other, with nothing outstanding.
show_peers() {
  seen "$1" "SELECT count(*), sum(rows_behind) FROM wavesync_peers;" "1|0"
  local fields="substr(peer_id, -8) AS peer, state, path, round(rtt_ms, 1) AS rtt_ms, rows_in, rows_out, rows_behind"
  typed "$1" "SELECT … FROM wavesync_peers;"
  must "$1" ".mode column
SELECT $fields FROM wavesync_peers;
.mode list
.headers off"
  printed "$1" "$answer"
}

join_sql() {
  printf "SELECT wavesync_join('music', 'correct horse battery staple', %s);" "$(quote "$1")"
}

# ---- the two files -------------------------------------------------------------------------

extension=${WAVESYNC_EXT:-$here/wavesync.so}
[ -e "$extension" ] || fail "$extension is missing: run \`make ext\` first"
command -v "$sqlite" >/dev/null || fail "there is no $sqlite: run \`make setup\`"
ln -s "$(cd "$(dirname "$extension")" && pwd)/$(basename "$extension")" "$work/wavesync.so"

if [ -n "$source_db" ]; then
  [ -r "$source_db" ] || fail "cannot read $source_db"
  "$sqlite" -readonly "$source_db" ".backup '$work/a.db'" || cp -- "$source_db" "$work/a.db"
  chmod u+w "$work/a.db"
  title=$(basename "$source_db")
else
  "$sqlite" -batch "$work/a.db" <"$here/demo/sample.sql"
  title="the books of a garden club"
fi
counted=0 tables=0
while IFS= read -r table; do
  counted=$((counted + $(read_file a "SELECT count(*) FROM $(identifier "$table")")))
  tables=$((tables + 1))
done < <(read_file a "$user_tables;")

say "${bold}wavesync$off  two sqlite3 shells, one database"
say
say "  ${lane_a}a.db$off   $title: $tables tables, $(thousands "$counted") rows"
say "  ${lane_b}b.db$off   empty"

# ---- join ----------------------------------------------------------------------------------

heading "One call on each side"
open_shell a
open_shell b
show a ".load ./wavesync"
show a "$(join_sql '{"listen":["/ip4/127.0.0.1/tcp/0"],"mdns":false}')"
end=$((SECONDS + 10))
until must a "SELECT coalesce(json_extract(listen, '\$[0]'), '') FROM wavesync_status;" && [ -n "$answer" ]; do
  [ "$SECONDS" -lt "$end" ] || fail "a.db listens nowhere"
done
address=$answer
case $address in */tcp/0) fail "a.db does not say on which port it listens ($address)" ;; esac
dial="{\"listen\":[\"/ip4/127.0.0.1/tcp/0\"],\"peers\":[\"$address\"],\"mdns\":false}"
show b ".load ./wavesync"
show b "$(join_sql "$dial")"
show b "SELECT wavesync_wait(${wait_seconds}000);" $((wait_seconds + 5))
[ "$answer" = 1 ] || fail "b.db had not caught up after $wait_seconds s"
compare

# ---- live ----------------------------------------------------------------------------------

heading "An edit, and one the other way round"
pick="SELECT m.name, c.name, k.name
FROM sqlite_master m, pragma_table_info(m.name) c, pragma_table_info(m.name) k, wavesync_tables w
WHERE m.type = 'table' AND w.name = m.name AND w.tracked AND w.rows >= 3 AND k.pk = 1 AND c.pk = 0
  AND (SELECT count(*) FROM pragma_table_info(m.name) WHERE pk > 0) = 1
  AND (upper(c.type) LIKE '%CHAR%' OR upper(c.type) = 'TEXT')
  AND NOT EXISTS (SELECT 1 FROM pragma_foreign_key_list(m.name) f WHERE f.\"from\" = c.name COLLATE NOCASE)
  AND NOT EXISTS (SELECT 1 FROM pragma_index_list(m.name) i, pragma_index_info(i.name) x
                  WHERE i.\"unique\" AND x.name = c.name)
ORDER BY (c.name LIKE '%name' OR c.name LIKE '%title') DESC, m.name = 'member' DESC, m.name, c.cid LIMIT 1;"
must a ".separator \"\\037\""
must a "$pick"
IFS=$'\x1f' read -r table column key <<<"$answer" || true
must a ".separator |"
count=0
if [ -n "${table:-}" ]; then
  t=$(identifier "$table") c=$(identifier "$column") k=$(identifier "$key")
  count=$(read_file a "SELECT count(*) FROM $t")
fi
row() { read_file a "SELECT quote($k) FROM $t ORDER BY $k LIMIT 1 OFFSET $1;"; }
if [ "$count" -ge 3 ]; then
  first=$(row 0) second=$(row 1) third=$(row 2)
  edit a b "UPDATE $t SET $c = 'x' WHERE $k = $first;" "SELECT $c FROM $t WHERE $k = $first;" x
  edit b a "UPDATE $t SET $c = 'there and back' WHERE $k = $first;" \
    "SELECT $c FROM $t WHERE $k = $first;" "there and back"
  edit b a "UPDATE $t SET $c = 'from b' WHERE $k = $second;" "SELECT $c FROM $t WHERE $k = $second;" "from b"
else
  say "  (this database has no table with a plain text column and three rows to show it on)"
fi

# ---- offline -------------------------------------------------------------------------------

heading "b goes away; another program, which never heard of wavesync, writes to its file"
typed b ".quit"
printf '.quit\n' >&"${input[b]}"
began=$(now)
end=$((SECONDS + 10))
while kill -0 "${pid[b]}" 2>/dev/null; do
  [ "$SECONDS" -lt "$end" ] || fail "the shell on b.db had not ended 10 s after .quit"
  read -r -t 0.01 -u "${output[b]}" _ || true
done
wait "${pid[b]}" || fail "the shell on b.db ended with status $?"
say "  ${dim}       ended in $(milliseconds "$began" "$(now)")$off"
to=${input[b]} from=${output[b]}
exec {to}>&- {from}<&-
unset 'pid[b]'

if [ "$count" -ge 3 ]; then
  offline="UPDATE $t SET $c = 'written while offline' WHERE $k = $third;"
  say "  ${dim}\$ sqlite3 b.db \"$offline\"$off"
  read_file b "$offline" || fail "a plain shell could not write to b.db"
  meanwhile="UPDATE $t SET $c = 'meanwhile in a' WHERE $k = $second;"
  show a "$meanwhile"
fi

heading "b comes back"
open_shell b
show b ".load ./wavesync"
show b "$(join_sql "$dial")"
show b "SELECT wavesync_wait(${wait_seconds}000);" $((wait_seconds + 5))
[ "$answer" = 1 ] || fail "b.db had not caught up after $wait_seconds s"
if [ "$count" -ge 3 ]; then
  seen a "SELECT $c FROM $t WHERE $k = $third;" "written while offline"
  typed a "SELECT $c FROM $t WHERE $k = $third;"
  printed a "$answer"
  seen b "SELECT $c FROM $t WHERE $k = $second;" "meanwhile in a"
  typed b "SELECT $c FROM $t WHERE $k = $second;"
  printed b "$answer"
fi

# ---- the end -------------------------------------------------------------------------------

heading "What each side knows of the other"
must a "SELECT wavesync_wait(${wait_seconds}000);" $((wait_seconds + 5))
show_peers a
show_peers b

heading "Every table, at the end"
compare
[ "$mismatches" = 0 ] || fail "tables differ"
say
