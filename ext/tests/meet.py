"""One group of members in many kinds of programs: `meet.py LIBRARY TARGET`.

A database in Debian's python3 is the first; the sqlite3 shell, apsw, a program in C, one in Rust
and Node's better-sqlite3 join it. Each writes a row and ends well once it sees the rows of all.
TARGET is where things are built. Node is left out, loudly, where it or its module cannot be had.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile

import binding

library, target = map(os.path.abspath, sys.argv[1:3])
here = os.path.dirname(os.path.abspath(__file__))
members = os.path.join(here, "members")
TIMEOUT = 120

SCRIPT = """
import sys, time, binding
module, library, database, name, options, count = sys.argv[1:]
Host, _ = binding.binding(module)
host = Host(database).load(library)
host.ask("PRAGMA busy_timeout = 5000")
def until(sql, expected):
    end = time.monotonic() + 60
    while host.ask(sql) < expected:
        assert time.monotonic() < end, sql
        time.sleep(0.02)
host.ask("SELECT wavesync_join('hosts', 'correct horse battery staple', ?)", options)
until("SELECT count(*) FROM sqlite_schema WHERE name = 'seen'", 1)
host.rows("INSERT INTO seen VALUES (?, sqlite_version())", name)
until("SELECT count(*) FROM seen", int(count))
until("SELECT wavesync_wait(1000)", 1)
host.close()
"""

SHELL = """.timeout 5000
.load {library}
SELECT wavesync_join('hosts', 'correct horse battery staple', '{options}');
SELECT wavesync_wait(30000);
INSERT INTO seen VALUES ('{name}', sqlite_version());
SELECT wavesync_wait(30000);
.quit
"""


def node():
    """The folder with better-sqlite3, or None with a loud line."""
    folder = os.path.join(target, "member-node")
    if shutil.which("node") is None or shutil.which("npm") is None:
        print("SKIPPED: better-sqlite3: there is no node or npm on this machine", flush=True)
        return None
    os.makedirs(folder, exist_ok=True)
    for name in ("package.json", "member.js"):
        shutil.copy(os.path.join(members, "node", name), folder)
    if not os.path.exists(os.path.join(folder, "node_modules/better-sqlite3/build/Release")):
        command = ["npm", "install", "--no-audit", "--no-fund", "--silent"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
        if done.returncode != 0:
            last = (done.stderr.strip() or "npm failed").splitlines()[-1]
            print(f"SKIPPED: better-sqlite3 cannot be installed: {last}", flush=True)
            return None
    return folder


def main():
    folder = tempfile.mkdtemp(prefix="wavesync-meet-")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"/ip4/127.0.0.1/tcp/{port}"

    def options(name):
        return json.dumps(
            {"listen": ["/ip4/127.0.0.1/tcp/0"], "peers": [address], "mdns": False, "name": name}
        )

    binary = os.path.join(folder, "member-c")
    subprocess.run(
        ["cc", "-Wall", "-Werror", "-o", binary, os.path.join(members, "member.c"), "-lsqlite3"],
        check=True,
    )
    commands = {
        "c": [binary],
        "rust": [os.path.join(target, "debug", "member-app")],
        "apsw": [os.path.join(target, "venv/bin/python"), "-c", SCRIPT, "apsw"],
        "python": ["/usr/bin/python3", "-c", SCRIPT, "sqlite3"],
    }
    node_folder = node()
    if node_folder:
        commands["node"] = ["node", os.path.join(node_folder, "member.js")]
    everybody = ["first", "shell", *commands]
    count = str(len(everybody))

    Host, _ = binding.binding("sqlite3")
    first = Host(os.path.join(folder, "first.db")).load(library)
    first.ask("PRAGMA busy_timeout = 5000")
    first.rows("CREATE TABLE seen(name TEXT PRIMARY KEY NOT NULL, version TEXT)")
    first.ask(
        "SELECT wavesync_join('hosts', 'correct horse battery staple', ?)",
        json.dumps({"listen": [address], "mdns": False, "name": "first"}),
    )
    first.rows("INSERT INTO seen VALUES ('first', sqlite_version())")
    started = {}
    for name, command in commands.items():
        database = os.path.join(folder, name + ".db")
        command = [*command, library, database, name, options(name), count]
        started[name] = subprocess.Popen(command, cwd=here, env={**os.environ, "PYTHONPATH": here})
    script = SHELL.format(library=library, options=options("shell"), name="shell")
    shell = subprocess.run(
        ["sqlite3", os.path.join(folder, "shell.db")],
        input=script,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert shell.returncode == 0 and not shell.stderr, shell
    for name, process in started.items():
        assert process.wait(TIMEOUT) == 0, f"{name} ended with {process.returncode}"
    rows = first.rows("SELECT name, version FROM seen ORDER BY name")
    assert [name for name, _ in rows] == sorted(everybody), rows
    for name in commands:
        other = Host(os.path.join(folder, name + ".db"))
        assert other.rows("SELECT name, version FROM seen ORDER BY name") == rows, name
        assert other.ask("PRAGMA integrity_check") == "ok", name
        other.close()
    first.close()
    shutil.rmtree(folder)
    for name, version in rows:
        print(f"ok {name}: a member on SQLite {version}")


main()
