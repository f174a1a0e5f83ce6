"""A running engine in a Python host: `engine.py sqlite3|apsw DIRECTORY`.

DIRECTORY holds wavesync.so. Exits with 0 when every check held.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import binding

module = sys.argv[1]
WAVESYNC = os.path.join(sys.argv[2], "wavesync.so")
Host, Failure = binding.binding(module)

JOIN = "SELECT wavesync_join('hosts', 'correct horse battery staple', ?)"
ALONE = '{"listen":["/ip4/127.0.0.1/tcp/0"],"mdns":false}'
HANDLES = 1000
# The first engine of a process leaves one idle thread (the reactor of async-io) and its four
# descriptors, for all engines to come.
LEFT_THREADS = 1
ENGINES = 30
FORKS = 50


def until(what, seconds=30):
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def member(path):
    host = Host(path).load(WAVESYNC)
    host.ask("PRAGMA busy_timeout = 5000")
    host.ask(JOIN, ALONE)
    return host


def numbers(count):
    """A query that counts from 1."""
    step = f"SELECT i + 1 FROM n WHERE i < {count}"
    return f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL {step}) SELECT i FROM n"


def running(host):
    return host.ask("SELECT state FROM wavesync_status") == "running"


def handles_and_engines_leave_nothing_behind(folder):
    path = os.path.join(folder, "many.db")
    first = member(path)
    first.rows("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
    until(lambda: running(first))
    first.close()
    until(lambda: binding.process()[0] == 1 + LEFT_THREADS)
    before = binding.process()
    for turn in range(HANDLES):
        # Handles that never load come and go in between.
        host = Host(path) if turn % 4 == 0 else Host(path).load(WAVESYNC)
        host.rows("INSERT INTO t(x) VALUES (?)", turn)
        host.close()
    for turn in range(ENGINES):
        host = member(path)
        if turn % 3 != 0:
            until(lambda: running(host))
        # Two loads on one handle, two handles on one engine.
        host.load(WAVESYNC)
        second = member(path)
        host.close()
        second.rows("INSERT INTO t(x) VALUES (?)", turn)
        second.close()
    until(lambda: binding.process()[:2] == before[:2], 10)
    last = member(path)
    until(lambda: last.ask("SELECT count(*) FROM wavesync_changes") == HANDLES + ENGINES)
    last.close()


WRITER = """
import sqlite3, sys, time
plain = sqlite3.connect(sys.argv[1], isolation_level=None)
plain.execute("PRAGMA busy_timeout = 5000")
print("writes", flush=True)
end = time.monotonic() + 60
while time.monotonic() < end:
    plain.execute("INSERT INTO t(x) VALUES (hex(randomblob(50)))")
    time.sleep(0.001)
"""


def a_forked_child_has_no_engine_and_harms_none(folder):
    """Also while the engine works: it must not be inside of SQLite when the process forks."""
    path = os.path.join(folder, "fork.db")
    # In WAL mode one that writes again and again does not starve the children.
    plain = Host(path)
    assert plain.ask("PRAGMA journal_mode = wal") == "wal"
    plain.close()
    parent = member(path)
    parent.rows("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
    until(lambda: running(parent))
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout.readline() == "writes\n"
    for turn in range(FORKS):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                own = Host(os.path.join(folder, "child.db")).load(WAVESYNC)
                refusal = ""
                try:
                    own.ask(JOIN, ALONE)
                except Failure as error:
                    refusal = str(error)
                own.close()
                same = Host(path).load(WAVESYNC)
                same.ask("PRAGMA busy_timeout = 20000")
                same.rows("INSERT INTO t(x) VALUES ('child')")
                state = same.ask("SELECT state FROM wavesync_status")
                left = same.ask("SELECT wavesync_leave()")
                same.close()
                if "forked" in refusal and state == "off" and left == 0:
                    status = 0
                else:
                    print("in the child:", refusal, state, left, flush=True)
            finally:
                os._exit(status)
        binding.ended_well(child)
    writer.kill()
    writer.wait()
    assert running(parent), parent.rows("SELECT state, leader FROM wavesync_status")
    parent.rows("INSERT INTO t(x) VALUES ('parent')")
    count = "SELECT count(*) FROM t"
    from_children = parent.ask(count + " WHERE x = 'child'")
    assert from_children == FORKS, (from_children, FORKS)
    until(lambda: parent.ask("SELECT count(*) FROM wavesync_changes") == parent.ask(count))
    parent.close()


def a_cursor_that_is_open_at_the_end_harms_nothing(folder):
    path = os.path.join(folder, "cursor.db")
    host = member(path)
    host.rows("CREATE TABLE t(id INTEGER PRIMARY KEY)")
    host.rows(f"INSERT INTO t {numbers(2000)}")
    until(lambda: running(host))
    until(lambda: host.ask("SELECT count(*) FROM wavesync_events") > 0)
    until(lambda: host.ask("SELECT count(*) FROM wavesync_changes") == 2000)
    for table in ("t", "wavesync_events", "wavesync_tables", "wavesync_changes"):
        cursor = host.connection.execute("SELECT * FROM " + table)
        next(cursor)
    try:
        host.close()
    except Failure:
        # A module that refuses is closed once its cursors are.
        cursor.close()
        host.close()
    del cursor
    until(lambda: binding.process()[0] == 1 + LEFT_THREADS, 10)


def after_a_kill_another_process_leads(folder):
    """Take-over within a second; the median of three, for the machine may be busy."""
    took = []
    for turn in range(3):
        path = os.path.join(folder, f"kill{turn}.db")
        program = (
            "import sys, time, binding\n"
            "Host, _ = binding.binding(sys.argv[1])\n"
            "host = Host(sys.argv[3]).load(sys.argv[2])\n"
            f"host.ask({JOIN!r}, {ALONE!r})\n"
            "while host.ask('SELECT leader FROM wavesync_status') != 1: time.sleep(0.01)\n"
            "print('leads', flush=True)\n"
            "time.sleep(600)\n"
        )
        leader = subprocess.Popen(
            [sys.executable, "-c", program, module, WAVESYNC, path],
            stdout=subprocess.PIPE,
            text=True,
            cwd=os.path.dirname(os.path.abspath(__file__)),
        )
        assert leader.stdout.readline() == "leads\n"
        host = member(path)
        until(lambda: host.ask("SELECT state FROM wavesync_status") == "waiting")
        leader.send_signal(signal.SIGKILL)
        leader.wait()
        start = time.monotonic()
        until(lambda: host.ask("SELECT leader FROM wavesync_status") == 1)
        took.append(time.monotonic() - start)
        host.close()
    took.sort()
    print(f"   took over after {took[1] * 1000:.0f} ms (median of three)")
    assert took[1] <= 1.0, took


def both_journal_modes_work(folder):
    for mode in ("delete", "wal"):
        path = os.path.join(folder, mode + ".db")
        plain = Host(path)
        assert plain.ask("PRAGMA journal_mode = " + mode) == mode
        host = member(path)
        host.rows("CREATE TABLE t(id INTEGER PRIMARY KEY)")
        until(lambda: running(host))
        plain.ask("PRAGMA busy_timeout = 5000")
        for number in range(200):
            (host if number % 2 else plain).rows("INSERT INTO t VALUES (?)", number)
        until(lambda: host.ask("SELECT count(*) FROM wavesync_changes") == 200)
        host.close()
        plain.close()


def reads_beside_one_that_waits_to_commit(folder):
    """A commit that waits for a statement keeps out every new reader, but not what this reads."""
    path = os.path.join(folder, "waits.db")
    host = member(path)
    host.rows("CREATE TABLE t(id INTEGER PRIMARY KEY)")
    host.rows(f"INSERT INTO t {numbers(3)}")
    until(lambda: host.ask("SELECT count(*) FROM wavesync_changes") == 3)
    version = host.ask("SELECT wavesync_db_version()")
    host.ask("SELECT wavesync_leave()")

    def commit():
        writer = Host(path)
        writer.ask("PRAGMA busy_timeout = 60000")
        writer.rows("INSERT INTO t VALUES (4)")
        writer.close()

    def kept_out():
        reader = Host(path)
        reader.ask("PRAGMA busy_timeout = 0")
        try:
            reader.rows("SELECT 1 FROM t")
        except Failure:
            return True
        finally:
            reader.close()
        return False

    thread = threading.Thread(target=commit)

    def waits(_):
        thread.start()
        until(kept_out)
        return 1

    host.function("waits", waits)
    start = time.monotonic()
    shown = host.rows(
        "SELECT (SELECT count(*) FROM wavesync_changes), wavesync_db_version(),"
        " length(wavesync_site_id()), (SELECT state FROM wavesync_status)"
        " FROM t WHERE id = 1 AND waits(id)"
    )
    took = time.monotonic() - start
    thread.join()
    assert [tuple(row) for row in shown] == [(3, version, 32, "off")], shown
    assert took < 3, took
    assert host.ask("SELECT count(*) FROM t") == 4
    host.close()


def a_row_written_during_a_scan_is_not_shown_with_its_old_stamp(folder):
    path = os.path.join(folder, "scan.db")
    host = member(path)
    host.rows("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
    # What is folded at once is read at once.
    for end in range(500, 2001, 500):
        host.rows(f"INSERT INTO t SELECT i, 'old' FROM ({numbers(end)}) WHERE i > {end - 500}")
        until(lambda end=end: host.ask("SELECT count(*) FROM wavesync_changes") == end)
    host.ask("SELECT wavesync_leave()")
    scan = host.connection.execute("SELECT pk, val FROM wavesync_changes")
    seen = dict([next(scan)])
    host.rows("UPDATE t SET x = 'new' WHERE id > 1990")
    seen.update(scan)
    assert set(seen.values()) == {"old"}, set(seen.values())
    assert sorted(seen) == list(range(1, 1991)), len(seen)
    host.close()


checks = [
    handles_and_engines_leave_nothing_behind,
    a_forked_child_has_no_engine_and_harms_none,
    a_cursor_that_is_open_at_the_end_harms_nothing,
    after_a_kill_another_process_leads,
    both_journal_modes_work,
    reads_beside_one_that_waits_to_commit,
    a_row_written_during_a_scan_is_not_shown_with_its_old_stamp,
]
for check in checks:
    folder = tempfile.mkdtemp(prefix="wavesync-engine-")
    try:
        check(folder)
    finally:
        shutil.rmtree(folder)
    print("ok", check.__name__, flush=True)
