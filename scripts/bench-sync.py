#!/usr/bin/python3
"""What a sync costs end to end: real sqlite3 shells with the release build, over loopback.

    make bench-sync                              every line
    make bench-sync ONLY='rows blob' ROWS=100000 lines whose names contain a word; fewer rows

CPU time is that of the whole shell process, user and system. Memory is the peak of resident memory
above that of the same shell before it joined; the memory-hard derivation of the group's key is over
by then. Nothing fails because of a timing. Needs Linux (/proc) and /usr/bin/python3 alone.
"""

import json
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
RELAY = pathlib.Path(sys.argv[2]).resolve()
SHELL = os.environ.get("SQLITE3") or "sqlite3"
ONLY = os.environ.get("ONLY", "").split()
ROWS = int(os.environ.get("ROWS") or 1_000_000)
PASSPHRASE = "correct horse battery staple"
TICKS = os.sysconf("SC_CLK_TCK")
WAIT_MS = 600_000
LOOPBACK = '{"listen":["/ip4/127.0.0.1/tcp/0"],"mdns":false}'


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

    def join(self, options=LOOPBACK):
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


class Relay:
    """A relay process on a free port."""

    def __init__(self, folder):
        self.process = subprocess.Popen(
            [RELAY, "--listen", "/ip4/127.0.0.1/tcp/0", "--identity", folder / "relay.key"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self.process.stdout.readline().split()[-1]

    def close(self):
        self.process.terminate()
        self.process.wait(timeout=30)


def catch_up(folder, name, fill, goal, count, relay=None):
    """A database with rows, and an empty one that joins; in sight of each other, or by a relay."""
    with sqlite3.connect(folder / "a.db") as conn:
        conn.execute("PRAGMA journal_mode=WAL")
        fill(conn)
    conn.close()
    options = {"listen": ["/ip4/127.0.0.1/tcp/0"], "mdns": False}
    if relay:
        options |= {"relays": [relay.address], "direct": False}
    a, b = Host(folder, "a", join=False), Host(folder, "b", join=False)
    a.join(json.dumps(options))
    # The rows that are there become part of what is synced; that is not what is measured.
    deadline = time.monotonic() + 600
    while int(a.run("SELECT rows FROM wavesync_tables WHERE name = 't'") or 0) < count or a.run(
        "SELECT count(*) FROM __wavesync_table WHERE import IS NOT NULL"
    ) != "0":
        assert time.monotonic() < deadline, "the existing rows are not taken in"
        time.sleep(0.1)
    b.run("BEGIN")
    b.run("ROLLBACK")
    began = time.monotonic()
    used = a.cpu(), b.cpu()
    b.join(json.dumps(options | {"adopt_schema": True}))
    for host in (a, b):
        host.forget_peak()
    if not relay:
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
    if relay:
        paths = b.run("SELECT path FROM wavesync_peers")
        assert paths == "relayed", paths
    a.close()
    b.close()


def relayed(folder, *arguments):
    relay = Relay(folder)
    catch_up(folder, *arguments, relay)
    relay.close()


def pair(folder, table="CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT)"):
    """Two connected hosts with one empty table, and a plain connection to the file of each."""
    hosts = []
    for name in ("a", "b"):
        with sqlite3.connect(folder / f"{name}.db") as conn:
            conn.execute("PRAGMA journal_mode=WAL")
            conn.execute(table)
        conn.close()
        hosts.append(Host(folder, name))
    a, b = hosts
    b.dial(a)
    b.wait()
    return a, b, plain(a), plain(b)


def plain(host):
    """A connection of a program that knows nothing of the extension."""
    conn = sqlite3.connect(host.path, isolation_level=None, timeout=20)
    conn.execute("PRAGMA synchronous=NORMAL")
    return conn


def until(query, wanted, seconds=60, pause=0.0002):
    """Waits until a query gives a value; the time at which it did."""
    deadline = time.perf_counter() + seconds
    while query().fetchone()[0] != wanted:
        assert time.perf_counter() < deadline, f"{wanted} was not seen in time"
        time.sleep(pause)
    return time.perf_counter()


def push_latency(folder, count):
    """From where the writer's COMMIT returns to where another program sees the row at the other side."""
    a, b, writer, reader = pair(folder)
    for name, pause, count in (("a commit each 50 ms", 0.05, count), ("a commit each 3 s", 3.0, max(count // 50, 3))):
        took = []
        for n in range(count):
            time.sleep(pause * random.uniform(0.5, 1.5))
            row = int(writer.execute("SELECT coalesce(max(id), 0) + 1 FROM t").fetchone()[0])
            writer.execute("INSERT INTO t VALUES(?, 'x')", (row,))
            began = time.perf_counter()
            took.append(until(lambda: reader.execute("SELECT coalesce(max(id), 0) FROM t"), row) - began)
        took.sort()
        p99 = took[min(len(took) - 1, len(took) * 99 // 100)]
        line(
            f"commit on A visible on B, {name}",
            "p50 <= 5 ms, p99 <= 30 ms",
            f"p50 {statistics.median(took) * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms",
            f"{count} commits of a plain program, seen by a plain program",
        )
    a.close()
    b.close()


def burst(folder, count):
    a, b, writer, reader = pair(folder)
    began = time.perf_counter()
    for n in range(count):
        writer.execute("INSERT INTO t(a) VALUES('x')")
    written = time.perf_counter()
    seen = until(lambda: reader.execute("SELECT count(*) FROM t"), count, pause=0.002)
    line(
        f"burst of {count:,} one-row transactions",
        "none is lost",
        f"{count:,} arrived",
        f"written in {written - began:.1f} s, the last one visible {seen - written:.2f} s later",
    )
    a.close()
    b.close()


def commits(folder, count):
    """What a running engine adds to the CPU time of a program that commits row by row."""
    added = []
    plain_cpu = []
    for n in range(3):
        times = {}
        for name in ("captured", "running"):
            sub = folder / f"{name}{n}"
            sub.mkdir()
            a, b, writer, reader = pair(sub)
            if name == "captured":
                a.run("SELECT wavesync_pause()")
                b.run("SELECT wavesync_pause()")
                a.close()
                b.close()
            used, host = own_cpu(), a.cpu() if name == "running" else 0.0
            for _ in range(count):
                writer.execute("INSERT INTO t(a) VALUES('some text of a row')")
            if name == "running":
                a.wait()
                times["engine"] = a.cpu() - host
            times[name] = own_cpu() - used
            if name == "running":
                a.close()
                b.close()
        sub = folder / f"plain{n}"
        sub.mkdir()
        conn = sqlite3.connect(sub / "p.db", isolation_level=None)
        conn.execute("PRAGMA journal_mode=WAL")
        conn.execute("PRAGMA synchronous=NORMAL")
        conn.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT)")
        used = own_cpu()
        for _ in range(count):
            conn.execute("INSERT INTO t(a) VALUES('some text of a row')")
        plain_cpu.append(own_cpu() - used)
        added.append((times["running"] + times["engine"] - times["captured"]) / plain_cpu[-1])
    line(
        "a running engine, one-row commits in their own rhythm",
        "<= 0.3x",
        f"{statistics.median(added):.2f}x",
        f"of the plain commits, {statistics.median(plain_cpu) / count * 1e6:.1f} us each; engine with one peer, all it does",
    )


def own_cpu():
    times = os.times()
    return times.user + times.system


def idle(folder, peers, seconds):
    hosts = []
    for n in range(peers + 1):
        sub = folder / f"{peers}-{n}"
        sub.mkdir()
        with sqlite3.connect(sub / "a.db") as conn:
            conn.execute("PRAGMA journal_mode=WAL")
            conn.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT)")
        conn.close()
        hosts.append(Host(sub, "a"))
    hub = hosts[0]
    for host in hosts[1:]:
        host.dial(hub)
    for host in hosts:
        host.wait()
    connected = hub.run("SELECT peers_connected FROM wavesync_status")
    time.sleep(5)
    used = hub.cpu()
    time.sleep(seconds)
    used = hub.cpu() - used
    hub.forget_peak()
    line(
        f"idle engine, {connected} connected",
        "< 0.1 % of a core" if peers == 1 else "< 0.5 % of a core",
        f"{used / seconds * 100:.2f} %",
        f"over {seconds} s; {hub.peak():.1f} MiB above the host (goal <= 20 MiB)",
    )
    for host in hosts:
        host.close()


def join_time(folder, count):
    """The memory-hard derivation of the group's key is not on the thread that runs SQL."""
    returned, ready = [], []
    for n in range(count):
        sub = folder / str(n)
        sub.mkdir()
        host = Host(sub, "a", join=False)
        host.run("CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT)")
        began = time.perf_counter()
        host.run(f"SELECT wavesync_join('bench', '{PASSPHRASE}', '{LOOPBACK}')")
        returned.append(time.perf_counter() - began)
        while host.run("SELECT state FROM wavesync_status") == "starting":
            assert time.perf_counter() - began < 60, "the engine does not start"
            time.sleep(0.001)
        ready.append(time.perf_counter() - began)
        host.close()
    line(
        "wavesync_join in an empty database",
        "returns in < 50 ms, the key is there within 1 s",
        f"{statistics.median(returned) * 1e3:.0f} ms, {statistics.median(ready) * 1e3:.0f} ms",
        f"median of {count} (at most {max(returned) * 1e3:.0f} ms, {max(ready) * 1e3:.0f} ms); "
        "until the shell answers, until the engine runs with the key",
    )


def in_folder(work, *arguments):
    with tempfile.TemporaryDirectory() as folder:
        work(pathlib.Path(folder), *arguments)


def main():
    print("| what | goal | measured | |")
    print("|---|---|---|---|")
    if wanted("join"):
        in_folder(join_time, 20)
    if wanted("rows"):
        fill = lambda conn: fill_rows(conn, ROWS)
        in_folder(catch_up, f"catch-up of {ROWS:,} rows of 6 columns", fill, ">= 200,000 rows/s", ROWS)
    if wanted("large"):
        count = max(ROWS // 10, 1)
        in_folder(catch_up, f"catch-up of {count:,} rows of 10 KB", fill_large(count, 10_000), "", count)
        in_folder(relayed, "the same through a relay", fill_large(count, 10_000), "", count)
    if wanted("latency"):
        in_folder(push_latency, 200)
    if wanted("burst"):
        in_folder(burst, 10_000)
    if wanted("commits"):
        in_folder(commits, 5_000)
    if wanted("idle"):
        in_folder(idle, 1, 30)
        in_folder(idle, 20, 30)
    if wanted("blob"):
        in_folder(catch_up, "catch-up of one blob of 60 MB", fill_large(1, 60_000_000), "", 1)


if __name__ == "__main__":
    main()
