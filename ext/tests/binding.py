"""The two SQLite modules of Python under one face, and what both tests of them ask the system."""

import os
import signal
import time


def binding(name):
    """A class of handles, and the module's error, for `sqlite3` or `apsw`."""
    if name == "apsw":
        import apsw

        module, failure = apsw, apsw.Error
        opened = apsw.Connection
    else:
        import sqlite3

        module, failure = sqlite3, sqlite3.Error

        def opened(path):
            return sqlite3.connect(path, isolation_level=None)

    class Host:
        """A handle; close() is the module's own."""

        def __init__(self, path=":memory:"):
            self.connection = opened(path)
            self.connection.enable_load_extension(True)

        def load(self, *libraries):
            for library in libraries:
                self.connection.load_extension(library)
            return self

        def rows(self, sql, *values):
            return self.connection.execute(sql, values).fetchall()

        def ask(self, sql, *values):
            return self.rows(sql, *values)[0][0]

        def function(self, called, body):
            """Makes a function of one argument known to SQL."""
            if name == "apsw":
                self.connection.create_scalar_function(called, body, 1)
            else:
                self.connection.create_function(called, 1, body)

        def close(self):
            self.connection.close()

    del module
    return Host, failure


def process():
    """Threads, open files and resident KiB of this process."""
    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    files = len(os.listdir("/proc/self/fd"))
    return int(fields["Threads"]), files, int(fields["VmRSS"].split()[0])


def ended_well(child, seconds=60):
    """Waits for a forked child to end with 0; one that hangs is killed, and fails."""
    end = time.monotonic() + seconds
    while True:
        process, status = os.waitpid(child, os.WNOHANG)
        if process == child:
            assert status == 0, status
            return
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError("the forked child hangs")
        time.sleep(0.002)
