#!/usr/bin/env bash
# The real sqlite3, on what a tab has in place of the file that is named last: an export as of now.
# A file that no tab has is the file itself.
set -euo pipefail

file=${*: -1}
place=$(node "$(dirname "$0")/snapshot.mjs" "$file")
trap '[ "$place" = "$file" ] || rm -f "$place"' EXIT
"$WAVESYNC_SQLITE3" "${@:1:$#-1}" "$place"
