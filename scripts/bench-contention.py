"""How a program that writes and the engine share a file: `bench-contention.py DIRECTORY [SECONDS]`.

DIRECTORY holds wavesync.so. Two databases in WAL mode are members of one group: the writer of the
first sends, the second receives. Prints a table; no figure fails anything.
"""

import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "ext", "tests"))
import binding

WAVESYNC = os.path.join(os.path.abspath(sys.argv[1]), "wavesync.so")
SECONDS = float(sys.argv[2]) if len(sys.argv) > 2 else 5.0
HELD_SECONDS = 10.0
Host, _ = binding.binding("sqlite3")
JOIN = "SELECT wavesync_join('bench', 'correct horse battery staple', ?)"

SENDER = """
import sys, time
sys.path.insert(0, sys.argv[1])
import binding
Host, _ = binding.binding("sqlite3")
host = Host(sys.argv[3]).load(sys.argv[2])
host.ask("PRAGMA journal_mode = WAL"); host.rows("PRAGMA synchronous = NORMAL"); host.ask("PRAGMA busy_timeout = 5000")
host.rows("CREATE TABLE t(id TEXT PRIMARY KEY NOT NULL, x TEXT)")
host.ask(sys.argv[4], sys.argv[5])
print("ready", flush=True)
n = 0
for line in sys.stdin:
    word, seconds = line.split()
    end = time.monotonic() + float(seconds)
    start = n
    while time.monotonic() < end:
        host.rows("BEGIN")
        for _ in range(100):
            n += 1
            host.rows("INSERT INTO t VALUES (?, 'from the sender')", f"s{n}")
        host.rows("COMMIT")
        time.sleep(0.01)
    print(n - start, flush=True)
"""


def writes(host, seconds, name):
    """One-row commits one after another: how many a second, and the slowest in ms."""
    slowest, count, start = 0.0, 0, time.monotonic()
    while time.monotonic() - start < seconds:
        before = time.monotonic()
        host.rows("INSERT INTO t VALUES (?, 'written here')", f"{name}{count}")
        slowest = max(slowest, time.monotonic() - before)
        count += 1
    return count / seconds, slowest * 1000


def received(host):
    return host.ask("SELECT count(*) FROM t WHERE id >= 's' AND id < 't'")


def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main():
    folder = tempfile.mkdtemp(prefix="wavesync-contention-")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tests = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "ext", "tests")
    address = f"/ip4/127.0.0.1/tcp/{port}"
    sender = subprocess.Popen(
        [
            *(sys.executable, "-c", SENDER, tests, WAVESYNC, os.path.join(folder, "sender.db"), JOIN),
            '{"listen":["%s"],"mdns":false}' % address,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert sender.stdout.readline() == "ready\n"

    def send(seconds):
        sender.stdin.write(f"send {seconds}\n")
        sender.stdin.flush()

    def sent():
        return int(sender.stdout.readline())

    print("| what | measured |\n|---|---|")
    plain = Host(os.path.join(folder, "plain.db"))
    plain.ask("PRAGMA journal_mode = WAL")
    plain.rows("PRAGMA synchronous = NORMAL")
    plain.rows("CREATE TABLE t(id TEXT PRIMARY KEY NOT NULL, x TEXT)")
    rate, slowest = writes(plain, SECONDS, "p")
    print(f"| one-row commits, no wavesync | {rate:,.0f}/s, slowest {slowest:.0f} ms |")

    host = Host(os.path.join(folder, "receiver.db")).load(WAVESYNC)
    host.ask("PRAGMA journal_mode = WAL")
    host.rows("PRAGMA synchronous = NORMAL")
    host.ask("PRAGMA busy_timeout = 5000")
    options = '{"listen":["/ip4/127.0.0.1/tcp/0"],"peers":["%s"],"mdns":false}' % address
    host.ask(JOIN, options)
    assert host.ask("SELECT wavesync_wait(20000)") == 1
    rate, slowest = writes(host, SECONDS, "a")
    print(f"| the same with a member connected | {rate:,.0f}/s, slowest {slowest:.0f} ms |")
    assert host.ask("SELECT wavesync_wait(60000)") == 1

    send(SECONDS)
    alone = sent()
    assert host.ask("SELECT wavesync_wait(60000)") == 1
    send(SECONDS)
    rate, slowest = writes(host, SECONDS, "b")
    count = sent()
    here = received(host) - alone
    start = time.monotonic()
    assert host.ask("SELECT wavesync_wait(60000)") == 1
    late = time.monotonic() - start
    assert received(host) == alone + count
    print(
        f"| the same while {count / SECONDS:,.0f} rows/s arrive | {rate:,.0f}/s, slowest"
        f" {slowest:.0f} ms; {100 * here / count:.0f} % of the rows were here at its end,"
        f" all of them {late:.1f} s later |"
    )

    before = received(host)
    send(2)
    host.rows("BEGIN IMMEDIATE")
    used, start = cpu(), time.monotonic()
    count = sent()
    while time.monotonic() - start < HELD_SECONDS:
        time.sleep(0.1)
    busy = (cpu() - used) / (time.monotonic() - start)
    assert received(host) == before
    host.rows("INSERT INTO t VALUES ('held', 'x')")
    host.rows("COMMIT")
    start = time.monotonic()
    assert host.ask("SELECT wavesync_wait(60000)") == 1
    assert received(host) == before + count
    print(
        f"| a write transaction of {HELD_SECONDS:.0f} s while {count:,} rows arrive | the engine"
        f" uses {100 * busy:.1f} % of a core meanwhile; everything is here"
        f" {1000 * (time.monotonic() - start):.0f} ms after the commit |"
    )
    sender.stdin.close()
    assert sender.wait(10) == 0
    host.close()
    shutil.rmtree(folder)


main()
