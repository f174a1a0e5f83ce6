"""The extension in a Python host: `host.py sqlite3|apsw DIRECTORY`.

DIRECTORY holds wavesync.so and plumbing.so. Exits with 0 when every check held.
"""

import os
import subprocess
import sys
import threading

import binding

CYCLES = 1000
WARM_UP_CYCLES = 200
GROWTH_LIMIT_KIB = 2048

module = sys.argv[1]
directory = sys.argv[2]
WAVESYNC = os.path.join(directory, "wavesync.so")
PLUMBING = os.path.join(directory, "plumbing.so")

Host, Failure = binding.binding(module)
process = binding.process


def counts(host):
    names = ("forked", "open", "closed", "mine", "scans")
    return dict(zip(names, map(int, host.ask("SELECT plumbing_counts()").split())))


def one_cycle():
    host = Host().load(WAVESYNC, PLUMBING)
    assert host.ask("SELECT wavesync_version()")
    assert host.ask("SELECT n FROM plumbing_numbers WHERE n > ? LIMIT 1", 41) == 42
    host.close()


def handles_leave_nothing_behind():
    observer = Host().load(PLUMBING)
    for _ in range(WARM_UP_CYCLES):
        one_cycle()
    before, started = counts(observer), process()
    for _ in range(CYCLES):
        one_cycle()
    after, ended = counts(observer), process()
    assert after["closed"] - before["closed"] == CYCLES, (before, after)
    assert after["open"] == 1 and after["mine"] == 1 and after["scans"] == 0, after
    assert started[:2] == ended[:2], ("threads, files", started, ended)
    assert ended[2] - started[2] < GROWTH_LIMIT_KIB, ("KiB", started, ended)
    observer.close()


def handles_on_many_threads():
    observer = Host().load(PLUMBING)
    before = counts(observer)
    threads = [
        threading.Thread(target=lambda: [one_cycle() for _ in range(25)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = counts(observer)
    assert after["closed"] - before["closed"] == 200 and after["open"] == 1, (before, after)
    observer.close()


def loading_twice_counts_once():
    observer = Host().load(PLUMBING)
    before = counts(observer)
    twice = Host().load(PLUMBING, WAVESYNC, PLUMBING, WAVESYNC)
    assert counts(observer)["open"] == 2
    twice.close()
    after = counts(observer)
    assert after["open"] == 1 and after["closed"] == before["closed"] + 1, (before, after)
    observer.close()


def errors_are_exceptions():
    host = Host().load(PLUMBING)
    for sql, words in (
        ("SELECT plumbing_echo()", "Usage: plumbing_echo(value [, ignored])"),
        ("SELECT plumbing_panic()", "internal error in plumbing_panic: planted"),
        ("SELECT * FROM plumbing_panics", "internal error in plumbing_panics"),
    ):
        try:
            host.ask(sql)
        except Failure as error:
            assert words in str(error), error
        else:
            raise AssertionError(sql + " did not fail")
    assert host.ask("SELECT plumbing_echo(?)", b"\0\xff") == b"\0\xff"
    host.close()


def a_forked_child_starts_afresh():
    parent = Host().load(PLUMBING)
    before = counts(parent)
    assert before["forked"] == 0
    child = os.fork()
    if child == 0:
        status = 1
        try:
            parent.close()
            own = Host().load(PLUMBING, WAVESYNC)
            now = counts(own)
            assert now["forked"] == 1, now
            assert now["open"] == 1 and now["mine"] == 1, now
            assert now["closed"] == before["closed"], "the parent's handle is not the child's"
            other = Host().load(PLUMBING)
            other.close()
            assert counts(own)["closed"] == before["closed"] + 1
            own.close()
            status = 0
        finally:
            os._exit(status)
    binding.ended_well(child)
    assert counts(parent) == before
    parent.close()


def a_second_copy_of_sqlite_is_refused():
    """apsw brings its own SQLite; Python's module uses another one in the same process."""
    program = (
        "import apsw, sqlite3, sys\n"
        "first = apsw.Connection(':memory:'); first.enable_load_extension(True)\n"
        "first.load_extension(sys.argv[1])\n"
        "second = sqlite3.connect(':memory:'); second.enable_load_extension(True)\n"
        "try:\n    second.load_extension(sys.argv[1])\n"
        "except sqlite3.Error as error:\n    print(error)\n"
        "second.close()\n"
        "print(first.execute('SELECT wavesync_version()').fetchall())\n"
        "first.close()\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, WAVESYNC], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run
    assert "already loaded by another copy of SQLite" in run.stdout, run
    assert "[('" in run.stdout, run


checks = [
    handles_leave_nothing_behind,
    handles_on_many_threads,
    loading_twice_counts_once,
    errors_are_exceptions,
    a_forked_child_starts_afresh,
]
if module == "apsw":
    checks.append(a_second_copy_of_sqlite_is_refused)
for check in checks:
    check()
    print("ok", check.__name__)
