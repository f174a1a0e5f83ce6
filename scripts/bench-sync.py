#!/usr/bin/python3
"""What a sync costs end to end: real sqlite3 shells with the release build, over loopback.

    make bench-sync                              every line
    make bench-sync ONLY='rows blob' ROWS=100000 lines whose names contain a word; fewer rows

CPU time is that of the whole shell process, user and system. Memory is the peak of resident memory
above that of the same shell before it joined; the memory-hard derivation of the group's key is over
by then. Nothing fails because of a timing. Needs Linux (/proc) and /usr/bin/python3 alone.
"""

import os
import pathlib
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time

EXTENSION = pathlib.Path(sys.argv[1]).resolve()
SHELL = os.environ.get("SQLITE3") or "sqlite3"
ONLY = os.environ.get("ONLY", "").split()
ROWS = int(os.environ.get("ROWS") or 1_000_000)
PASSPHRASE = "correct horse battery staple"
TICKS = os.sysconf("SC_CLK_TCK")
WAIT_MS = 600_000


class Host:
    """A sqlite3 shell with a database and the extension."""

    def __init__(self, folder, name, join=True):
        self.path = folder / f"{name}.db"
        self.process = subprocess.Popen(
            [SHELL, "-batch", "-noheader", str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        self.run("PRAGMA journal_mode=WAL")
        self.run(f".load {EXTENSION.with_suffix('')}")
        self.run("SELECT count(*) FROM sqlite_schema")
        self.before = self.status("VmRSS")
        if join:
            self.join()

    def join(self, options='{"listen":["/ip4/127.0.0.1/tcp/0"],"mdns":false}'):
        self.run(f"SELECT wavesync_join('bench', '{PASSPHRASE}', '{options}')")
        deadline = time.monotonic() + 60
        while not self.run("SELECT listen FROM wavesync_status WHERE state = 'running'").startswith('["'):
            assert time.monotonic() < deadline, "the engine does not start"
            time.sleep(0.02)

    def run(self, sql):
        """Runs a statement or a dot command and returns what it printed."""
        end = "" if sql.startswith(".") else ";"
        self.process.stdin.write(f"{sql}{end}\n.print :done:\n")
        self.process.stdin.flush()
        lines = []
        while True:
            line = self.process.stdout.readline()
            assert line, f"the shell ended: {lines}"
            if line == ":done:\n":
                break
            lines.append(line.rstrip("\n"))
        answer = "\n".join(lines)
        assert "rror" not in answer, f"{sql}: {answer}"
        return answer

    def address(self):
        return self.run("SELECT json_extract(listen, '$[0]') FROM wavesync_status")

    def dial(self, other):
        self.run(f"SELECT wavesync_dial('{other.address()}')")

    def wait(self):
        assert self.run(f"SELECT wavesync_wait({WAIT_MS})") == "1", "not caught up in time"

    def cpu(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def status(self, field):
        """A size of memory in MiB."""
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
        raise KeyError(field)

    def forget_peak(self):
        pathlib.Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def peak(self):
        return self.status("VmHWM") - self.before

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=30)


def wanted(*names):
    return not ONLY or any(name in ONLY for name in names)


def line(what, goal, measured, detail=""):
    print(f"| {what} | {goal} | {measured} | {detail} |", flush=True)


SIX_COLUMNS = """
CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT NOT NULL, amount INTEGER NOT NULL, price REAL,
               day TEXT, note TEXT)"""


def fill_rows(conn, count):
    dice = random.Random(1)
    words = ["garden", "water", "seed", "north bed", "Thursday", "compost", "again", "shade"]
    conn.execute(SIX_COLUMNS)
    conn.executemany(
        "INSERT INTO t VALUES(?, ?, ?, ?, ?, ?)",
        (
            (
                n + 1,
                f"item {dice.randrange(1_000_000)}",
                dice.randrange(1_000_000),
                dice.randrange(1_000_000) / 7,
                f"20{dice.randrange(25):02}-{n % 12 + 1:02}-{n % 28 + 1:02}",
                " ".join(dice.choices(words, k=4)) if n % 5 else None,
            )
            for n in range(count)
        ),
    )


def fill_large(count, size):
    def fill(conn):
        conn.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB NOT NULL)")
        for n in range(count):
            conn.execute("INSERT INTO t VALUES(?, ?)", (n + 1, random.Random(n).randbytes(size)))

    return fill


def catch_up(folder, name, fill, goal, count):
    """A database with rows, and an empty one that joins."""
    with sqlite3.connect(folder / "a.db") as conn:
        conn.execute("PRAGMA journal_mode=WAL")
        fill(conn)
    conn.close()
    a, b = Host(folder, "a"), Host(folder, "b", join=False)
    # The rows that are there become part of what is synced; that is not what is measured.
    deadline = time.monotonic() + 600
    while int(a.run("SELECT rows FROM wavesync_tables WHERE name = 't'") or 0) < count or a.run(
        "SELECT count(*) FROM __wavesync_table WHERE import IS NOT NULL"
    ) != "0":
        assert time.monotonic() < deadline, "the existing rows are not taken in"
        time.sleep(0.1)
    b.run("BEGIN")
    b.run("ROLLBACK")
    b.join('{"listen":["/ip4/127.0.0.1/tcp/0"],"mdns":false,"adopt_schema":true}')
    for host in (a, b):
        host.forget_peak()
    used = a.cpu(), b.cpu()
    began = time.monotonic()
    b.dial(a)
    b.wait()
    took = time.monotonic() - began
    got = int(b.run("SELECT count(*) FROM t"))
    assert got == count, f"{got} rows of {count}"
    used = a.cpu() - used[0], b.cpu() - used[1]
    detail = (
        f"{took:.1f} s; CPU {used[0]:.1f} s, {used[1]:.1f} s; "
        f"peak memory {a.peak():.1f} MiB, {b.peak():.1f} MiB (sender, receiver; goal <= 64 MiB)"
    )
    line(name, goal, f"{count / took:,.0f} rows/s", detail)
    a.close()
    b.close()


def in_folder(work, *arguments):
    with tempfile.TemporaryDirectory() as folder:
        work(pathlib.Path(folder), *arguments)


def main():
    print("| what | goal | measured | |")
    print("|---|---|---|---|")
    if wanted("rows"):
        fill = lambda conn: fill_rows(conn, ROWS)
        in_folder(catch_up, f"catch-up of {ROWS:,} rows of 6 columns", fill, ">= 200,000 rows/s", ROWS)
    if wanted("large"):
        count = max(ROWS // 10, 1)
        in_folder(catch_up, f"catch-up of {count:,} rows of 10 KB", fill_large(count, 10_000), "", count)
    if wanted("blob"):
        in_folder(catch_up, "catch-up of one blob of 60 MB", fill_large(1, 60_000_000), "", 1)


if __name__ == "__main__":
    main()
