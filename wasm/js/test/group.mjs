//! The others of a group: a relay, and a sqlite3 shell with the extension.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { until } from "./stage.mjs";

const { WAVESYNC_RELAY, WAVESYNC_EXT } = process.env;

export class Group {
  #relay;
  #shell;
  #printed = [];

  static async open(directory) {
    assert.ok(
      WAVESYNC_RELAY && WAVESYNC_EXT,
      "run it by make browser: it needs the relay and the extension",
    );
    const group = new Group();
    const options = ["--listen", "/ip4/127.0.0.1/tcp/0/ws", "--identity", join(directory, "key")];
    group.#relay = spawn(WAVESYNC_RELAY, options, { stdio: ["ignore", "pipe", "ignore"] });
    const lines = createInterface(group.#relay.stdout);
    [group.address] = await once(lines, "line");
    lines.on("line", () => {});
    group.#shell = spawn("sqlite3", ["-batch", join(directory, "shell.db")], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    createInterface(group.#shell.stdout).on("line", (line) => group.#printed.push(line));
    await group.run(`.load ${WAVESYNC_EXT}`);
    return group;
  }

  /** Runs SQL in the shell; gives the lines that it prints. */
  async run(sql) {
    this.#printed = [];
    this.#shell.stdin.write(`${sql}\n.print done\n`);
    await until(`the shell: ${sql}`, () => this.#printed.at(-1) === "done");
    return this.#printed.slice(0, -1);
  }

  join(topic, passphrase) {
    const options = JSON.stringify({
      listen: ["/ip4/127.0.0.1/tcp/0"],
      relays: [this.address],
      mdns: false,
      name: "kitchen shell",
    });
    return this.run(`SELECT wavesync_join('${topic}', '${passphrase}', '${options}');`);
  }

  async close() {
    this.#relay.kill("SIGKILL");
    this.#shell.stdin.end(".quit\n");
    await once(this.#shell, "exit");
  }
}
