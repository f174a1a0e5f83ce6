"""Processes that sync are killed in the middle of it: `kill.py LIBRARY`.

Two hosts on loopback write and receive; one of them is killed by SIGKILL at a random moment. Then
its file is opened by plain SQLite, without the extension:

- `integrity_check` is ok;
- every commit whose COMMIT returned is there, and no part of another one of its own;
- what its vector and its cursor say is here, is here;
- nobody has seen of it what it does not have.

In the end of each pair of databases both hold the same, and every commit that returned. The journal
mode changes from pair to pair. KILLS=200 says how often is killed, SEED= chooses the moments; both
are printed. What happens in a moment depends on the machine: a seed does not repeat a run exactly.
"""

import os
import random
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time

LIBRARY = os.path.abspath(sys.argv[1]) if sys.argv[1:] else "./wavesync.so"
KILLS = int(os.environ.get("KILLS") or 200)
SEED = int(os.environ.get("SEED") or time.time_ns() % 1_000_000)
KILLS_PER_PAIR = int(os.environ.get("KILLS_PER_PAIR") or 10)
HISTORY_ROWS = 12_000
NOTICED = "pairs harmed on purpose, all of it noticed"
# A condition that is not met by then never will be.
PATIENCE_S = int(os.environ.get("PATIENCE_S") or 60)

SCHEMA = """
CREATE TABLE history(id INTEGER PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE deed(k TEXT PRIMARY KEY NOT NULL, who TEXT NOT NULL, n INTEGER NOT NULL,
  parts INTEGER NOT NULL);
CREATE TABLE part(k TEXT PRIMARY KEY NOT NULL, deed TEXT NOT NULL, body TEXT) WITHOUT ROWID;
CREATE TABLE last(who TEXT PRIMARY KEY NOT NULL, n INTEGER NOT NULL);
CREATE INDEX part_deed ON part(deed);
"""

# A member that writes deed after deed, each in one transaction over three tables, and says so once
# COMMIT has returned. What it is told comes by lines of its input.
WORKER = """
import json, random, select, sqlite3, sys, time
path, library, who, own, other, seed = sys.argv[1:]
dice = random.Random(int(seed))
host = sqlite3.connect(path, isolation_level=None)
host.execute("PRAGMA busy_timeout = 20000")
host.execute("PRAGMA synchronous = NORMAL")
host.enable_load_extension(True)
host.load_extension(library)
options = {"listen": [f"/ip4/127.0.0.1/tcp/{own}"], "peers": [f"/ip4/127.0.0.1/tcp/{other}"]}
options = json.dumps(options | {"mdns": False})
host.execute("SELECT wavesync_join('kill', 'correct horse battery staple', ?)", [options])
n = host.execute("SELECT coalesce(max(n), 0) FROM deed WHERE who = ?", [who]).fetchone()[0]
print("up", n, flush=True)
writes = True
while True:
    told, _, _ = select.select([sys.stdin], [], [], dice.uniform(0, 0.012) if writes else None)
    if told:
        word = sys.stdin.readline().strip()
        if word == "stop":
            writes = False
            print("stopped", n, flush=True)
        elif word == "wait":
            print("waited", host.execute("SELECT wavesync_wait(2000)").fetchone()[0], flush=True)
        elif word == "why":
            told = [host.execute("SELECT state, last_error, hint FROM wavesync_status")]
            told.append(host.execute("SELECT * FROM wavesync_peers"))
            told.append(host.execute("SELECT at, code, message FROM wavesync_events"))
            print("why", [rows.fetchall() for rows in told], flush=True)
        else:
            break
        continue
    n += 1
    parts = dice.choice([1, 2, 3, 8, 30, 30, 400])
    host.execute("BEGIN IMMEDIATE")
    host.execute("INSERT INTO deed VALUES(?, ?, ?, ?)", [f"{who}{n}", who, n, parts])
    host.executemany(
        "INSERT INTO part VALUES(?, ?, hex(randomblob(20)))",
        [(f"{who}{n}.{at}", f"{who}{n}") for at in range(parts)],
    )
    last = "INSERT INTO last VALUES(?, ?) ON CONFLICT(who) DO UPDATE SET n = excluded.n"
    host.execute(last, [who, n])
    host.execute("COMMIT")
    print("did", n, flush=True)
host.close()
"""


def until(condition, what):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"not in {PATIENCE_S} s: {what}"
        time.sleep(0.002)


def plain(path):
    """A connection of a program that has nothing of the extension."""
    conn = sqlite3.connect(path, isolation_level=None, timeout=20)
    conn.execute("PRAGMA synchronous = OFF")
    return conn


def one(conn, sql, *values):
    return conn.execute(sql, values).fetchone()[0]


class Member:
    """One replica, and the process that runs on it if one does."""

    def __init__(self, folder, who, journal):
        self.who = who
        self.path = os.path.join(folder, f"{who}.db")
        self.log = open(os.path.join(folder, f"{who}.txt"), "w", encoding="utf-8")
        self.process = None
        # The highest number of a deed whose COMMIT returned.
        self.acknowledged = 0
        self.done_since_start = 0
        self.pending = ""
        conn = plain(self.path)
        one(conn, f"PRAGMA journal_mode = {journal}")
        conn.executescript(SCHEMA)
        if who == "a":
            conn.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
                " INSERT INTO history SELECT i, 'long ago ' || i FROM n",
                [HISTORY_ROWS],
            )
        conn.close()

    def start(self, own, other, seed):
        self.done_since_start = 0
        self.pending = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, self.path, LIBRARY, self.who]
            + [str(own), str(other), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )
        os.set_blocking(self.process.stdout.fileno(), False)

    def hear(self, seconds=0.0):
        """Takes in what the process has said; returns its complete lines."""
        lines = []
        if select.select([self.process.stdout], [], [], seconds)[0]:
            told = self.process.stdout.read()
            if told == b"":
                self.log.flush()
                with open(self.log.name, encoding="utf-8") as log:
                    raise AssertionError(f"{self.who} ended by itself: {log.read()}")
            *lines, self.pending = (self.pending + (told or b"").decode()).split("\n")
        for line in lines:
            word, *rest = line.split(" ", 1)
            if word == "did":
                assert int(rest[0]) > self.acknowledged, line
                self.acknowledged = int(rest[0])
                self.done_since_start += 1
            elif word == "up":
                known = f"{self.who}: {self.acknowledged} were acknowledged: {line}"
                assert int(rest[0]) >= self.acknowledged, known
        return lines

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        # What was said before is in the pipe.
        os.set_blocking(self.process.stdout.fileno(), True)
        rest = (self.pending + self.process.stdout.read().decode()).split("\n")
        for line in rest[:-1]:
            if line.startswith("did "):
                self.acknowledged = max(self.acknowledged, int(line[4:]))
        self.process.stdin.close()
        self.process.stdout.close()
        self.process = None

    def tell(self, word, answer):
        """Says a word and returns the answer to it."""
        self.process.stdin.write(f"{word}\n".encode())
        self.process.stdin.flush()
        end = time.monotonic() + PATIENCE_S
        while True:
            for line in self.hear(0.1):
                if line.startswith(answer + " "):
                    return line[len(answer) + 1 :]
            assert time.monotonic() < end, f"{self.who} does not answer to {word}"

    def end(self):
        self.process.stdin.close()
        assert self.process.wait(timeout=PATIENCE_S) == 0, f"{self.who} ended with an error"
        self.process.stdout.close()
        self.process = None


def why(member):
    """What a member says of itself, and what its file says."""
    conn = plain(member.path)
    site = "JOIN __wavesync_site s ON s.num = site ORDER BY s.id"
    vector = f"SELECT hex(s.id), stamp FROM __wavesync_vector {site}"
    cursor = f"SELECT hex(s.id), boot, seq, high, hex(place) FROM __wavesync_cursor {site}"
    told = [conn.execute(sql).fetchall() for sql in (vector, cursor)]
    conn.close()
    waited = member.tell("wait", "waited")
    return f"{member.who}: waited {waited}, {told}, {member.tell('why', 'why')}"


def own_deeds_are_whole(conn, who, acknowledged):
    there = {row[0] for row in conn.execute("SELECT n FROM deed WHERE who = ?", [who])}
    lost = set(range(1, acknowledged + 1)) - there
    # A number is given again if its COMMIT did not return, so there are no gaps.
    assert not lost, f"acknowledged commits of {who} are lost: {sorted(lost)}"
    halves = conn.execute(
        "SELECT d.k, d.parts, (SELECT count(*) FROM part p WHERE p.deed = d.k) AS found FROM deed d"
        " WHERE d.who = ? AND found <> d.parts",
        [who],
    ).fetchall()
    assert not halves, f"half a commit: {halves}"
    strays = one(
        conn,
        "SELECT count(*) FROM part WHERE k GLOB ? AND deed NOT IN (SELECT k FROM deed)",
        f"{who}*",
    )
    assert strays == 0, f"{strays} parts of no commit"
    last = conn.execute("SELECT n FROM last WHERE who = ?", [who]).fetchone()
    assert (last or (0,))[0] == max(there, default=0), (last, max(there, default=0))


def nothing_is_claimed_that_is_not_here(conn, name, other):
    """Compares with the other one's rows, read after those here. `conn` reads both files."""
    tables = conn.execute(
        "SELECT lower(o.name), o.num, m.num FROM other.__wavesync_table o"
        " JOIN __wavesync_table m ON m.name = o.name AND m.integer_key = o.integer_key"
    ).fetchall()
    for table, there, here in tables:
        key = {"history": "id", "deed": "k", "part": "k", "last": "who"}[table]
        missing = one(
            conn,
            f"SELECT count(*) FROM other.__wavesync_clock_{there} o"
            " JOIN other.__wavesync_site os ON os.num = o.site"
            " JOIN __wavesync_site s ON s.id = os.id JOIN __wavesync_vector v ON v.site = s.num"
            " WHERE o.stamp <= v.stamp AND NOT EXISTS"
            f" (SELECT 1 FROM __wavesync_clock_{here} m WHERE m.k = o.k)",
        )
        only = f"rows of {table} that are only at {other}"
        assert missing == 0, f"the vector of {name} covers {missing} {only}"
        behind = one(
            conn,
            f"SELECT count(*) FROM other.__wavesync_clock_{there} o WHERE o.seq <= ("
            "  SELECT c.seq FROM __wavesync_cursor c JOIN __wavesync_site s ON s.num = c.site"
            "  WHERE s.id = (SELECT id FROM other.__wavesync_site WHERE num ="
            "   (SELECT value FROM other.__wavesync_meta WHERE key = 'self')))"
            f" AND NOT EXISTS (SELECT 1 FROM __wavesync_clock_{here} m WHERE m.k = o.k)",
        )
        assert behind == 0, f"the cursor of {name} is beyond {behind} {only}"
        # Nothing is parked here: each clock has its row, and each row that was folded its clock.
        unseen = one(
            conn,
            f"SELECT count(*) FROM __wavesync_clock_{here} m WHERE NOT EXISTS"
            f" (SELECT 1 FROM main.{table} t WHERE t.{key} = m.k)",
        )
        assert unseen == 0, f"{unseen} rows of {table} have a clock and are not in the table"
    stale = conn.execute(
        # The update of `last` is in the same commit as the deed that it names.
        "SELECT d.who, max(d.n), l.n FROM main.deed d LEFT JOIN main.last l ON l.who = d.who"
        " JOIN __wavesync_table t ON t.name = 'deed'"
        " WHERE d.k IN (SELECT c.k FROM clock_of_deed c JOIN __wavesync_vector v ON v.site = c.site"
        "  WHERE c.stamp <= v.stamp) GROUP BY d.who HAVING l.n IS NULL OR l.n < max(d.n)"
    ).fetchall()
    assert not stale, f"the vector of {name} covers an update that is not here: {stale}"
    ahead = conn.execute(
        "SELECT hex(s.id), v.stamp, o.stamp FROM other.__wavesync_vector o"
        " JOIN other.__wavesync_site os ON os.num = o.site"
        " JOIN __wavesync_site s ON s.id = os.id LEFT JOIN __wavesync_vector v ON v.site = s.num"
        " WHERE s.num = (SELECT value FROM __wavesync_meta WHERE key = 'self')"
        " AND coalesce(v.stamp, -1 << 62) < o.stamp"
    ).fetchall()
    assert not ahead, f"{other} has seen of {name} what {name} has not: {ahead}"


def check(path, name, acknowledged, other_path, other):
    """The file as the kill left it; returns what it shows of the moment."""
    wal = path + "-wal"
    state = {
        "hot journal": os.path.exists(path + "-journal") and os.path.getsize(path + "-journal") > 0,
        "wal": os.path.exists(wal) and os.path.getsize(wal) > 0,
    }
    conn = plain(path)
    try:
        check = one(conn, "PRAGMA integrity_check")
        assert check == "ok", check
        own_deeds_are_whole(conn, name, acknowledged)
        if not one(conn, "SELECT count(*) FROM sqlite_schema WHERE name = '__wavesync_meta'"):
            return state | {"before the join": True}
        state["unfolded"] = bool(
            one(conn, "SELECT coalesce(max(seq), 0) FROM __wavesync_log")
            > one(conn, "SELECT value FROM __wavesync_meta WHERE key = 'folded'")
        )
        state["in a catch-up"] = bool(
            one(conn, "SELECT count(*) FROM __wavesync_cursor WHERE place IS NOT NULL")
        )
        state["in the back-fill"] = bool(
            one(conn, "SELECT count(*) FROM __wavesync_table WHERE import IS NOT NULL")
        )
        state["log trimmed"] = bool(
            one(conn, "SELECT count(*) FROM __wavesync_meta WHERE key = 'horizon' AND value > 0")
        )
        conn.execute("ATTACH ? AS other", [other_path])
        if one(conn, "SELECT count(*) FROM other.sqlite_schema WHERE name = '__wavesync_meta'"):
            number = conn.execute("SELECT num FROM __wavesync_table WHERE name = 'deed'").fetchone()
            if number:
                conn.execute(
                    "CREATE TEMP VIEW clock_of_deed AS"
                    f" SELECT k, stamp, site FROM main.__wavesync_clock_{number[0]}"
                )
                # The vector here was written before whatever is read there now.
                nothing_is_claimed_that_is_not_here(conn, name, other)
    finally:
        conn.close()
    return state


def dump(path):
    conn = plain(path)
    tables = ("history", "deed", "part", "last")
    rows = [conn.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in tables]
    assert one(conn, "SELECT count(*) FROM __wavesync_parked") == 0
    conn.close()
    return rows


def the_checks_notice(member, other):
    """A check that nothing fails shows nothing: each is shown a file in which it must fail."""
    harm = {
        "are lost": "DELETE FROM deed WHERE who = '{own}' AND n = {n}",
        "half a commit": "DELETE FROM part WHERE k = '{own}{n}.0'",
        "the vector of": "DELETE FROM __wavesync_clock_{deed} WHERE k = '{other}1'",
        "have a clock": "DELETE FROM deed WHERE k = '{other}1'",
        "an update that is not here": "UPDATE last SET n = 0 WHERE who = '{other}'",
        "has seen of": "UPDATE __wavesync_vector SET stamp = stamp - 1000000000"
        " WHERE site = (SELECT value FROM __wavesync_meta WHERE key = 'self')",
        "the cursor of": "DELETE FROM __wavesync_clock_{deed} WHERE k = '{other}1';"
        "DELETE FROM __wavesync_vector"
        " WHERE site <> (SELECT value FROM __wavesync_meta WHERE key = 'self')",
    }
    for words, script in harm.items():
        path = member.path + "-harmed"
        shutil.copy(member.path, path)
        conn = plain(path)
        deed = one(conn, "SELECT num FROM __wavesync_table WHERE name = 'deed'")
        # The triggers are as they are: what is deleted here is no matter of theirs.
        triggers = "SELECT name FROM sqlite_schema WHERE type = 'trigger'"
        for trigger in conn.execute(triggers).fetchall():
            conn.execute(f'DROP TRIGGER "{trigger[0]}"')
        conn.executescript(
            script.format(own=member.who, other=other.who, n=member.acknowledged, deed=deed)
        )
        conn.close()
        try:
            check(path, member.who, member.acknowledged, other.path, other.who)
        except AssertionError as error:
            assert words in str(error), (words, error)
        else:
            raise AssertionError(f"not noticed: {words}")
        os.remove(path)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    ports = [free.getsockname()[1] for free in sockets]
    for free in sockets:
        free.close()
    return ports


def wait_for_moment(dice, victim, other):
    """Goes on until a random moment in the life of the victim; returns its name."""
    later = ["while it writes", "while it receives"]
    kind = dice.choice(["at the start", *later, *later])
    if kind == "at the start":
        end = time.monotonic() + dice.uniform(0, 0.3)
        while time.monotonic() < end:
            victim.hear(0.005)
            other.hear()
        return kind
    if kind == "while it writes":
        wanted = dice.randint(1, 12)

        def reached():
            other.hear()
            victim.hear(0.003)
            return victim.done_since_start >= wanted
    else:
        conn = plain(victim.path)
        received = (
            "SELECT (SELECT count(*) FROM deed WHERE who = ?) + (SELECT count(*) FROM history)"
        )
        before = one(conn, received, other.who)

        def reached():
            other.hear()
            victim.hear(0.003)
            return one(conn, received, other.who) > before

    until(reached, kind)
    end = time.monotonic() + dice.uniform(0, 0.02)
    while time.monotonic() < end:
        victim.hear(0.001)
    return kind


def play_pair(dice, journal, kills, counts):
    folder = tempfile.mkdtemp(prefix="wavesync-kill-")
    members = [Member(folder, "a", journal), Member(folder, "b", journal)]
    ports = free_ports(2)

    def start(at):
        members[at].start(ports[at], ports[1 - at], dice.randrange(1 << 30))

    start(0)
    start(1)
    for _ in range(kills):
        at = dice.randrange(2)
        victim, other = members[at], members[1 - at]
        try:
            kind = wait_for_moment(dice, victim, other)
        except AssertionError:
            for member in members:
                print(why(member), flush=True)
            raise
        victim.kill()
        state = check(victim.path, victim.who, victim.acknowledged, other.path, other.who)
        for word in [kind] + [word for word, seen in state.items() if seen]:
            counts[word] = counts.get(word, 0) + 1
        other.hear()
        start(at)
    for member in members:
        member.tell("stop", "stopped")
    end = time.monotonic() + PATIENCE_S
    while any(member.tell("wait", "waited") != "1" for member in members):
        if time.monotonic() > end:
            raise AssertionError("never caught up: " + "\n".join(why(member) for member in members))
    for member in members:
        member.end()
    for member, other in (members, members[::-1]):
        check(member.path, member.who, member.acknowledged, other.path, other.who)
        conn = plain(member.path)
        own_deeds_are_whole(conn, other.who, other.acknowledged)
        assert one(conn, "SELECT count(*) FROM history") == HISTORY_ROWS
        conn.close()
    assert dump(members[0].path) == dump(members[1].path), "the two differ"
    if all(member.acknowledged for member in members):
        the_checks_notice(*members)
        counts[NOTICED] = counts.get(NOTICED, 0) + 1
    for member in members:
        member.log.close()
    shutil.rmtree(folder)
    return sum(member.acknowledged for member in members)


def main():
    print(f"KILLS={KILLS} SEED={SEED}", flush=True)
    dice = random.Random(SEED)
    began, counts, commits, done = time.monotonic(), {}, 0, 0
    pair = 0
    while done < KILLS:
        kills = min(KILLS_PER_PAIR, KILLS - done)
        journal = os.environ.get("JOURNAL") or ("wal", "delete")[pair % 2]
        try:
            commits += play_pair(dice, journal, kills, counts)
        except BaseException:
            print(f"failed in pair {pair}, journal mode {journal}, SEED={SEED}", flush=True)
            raise
        done, pair = done + kills, pair + 1
    took = time.monotonic() - began
    print(", ".join(f"{word}: {count}" for word, count in sorted(counts.items())))
    assert counts.get(NOTICED) or KILLS < KILLS_PER_PAIR, "the checks were not checked"
    print(f"{done} kills in {took:.0f} s; {commits} acknowledged commits, none lost, both even")


main()
