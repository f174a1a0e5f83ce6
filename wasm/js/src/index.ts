//! wavesync in the browser: an SQLite database that all tabs share and that syncs peer to peer.

import { Database } from "./database.js";
import { fault } from "./errors.js";
import { remove } from "./pool.js";
import { VERSION } from "./version.js";

export { Database, Statement, Transaction } from "./database.js";
export type { EngineEvent, Events, Peer, Status } from "./database.js";
export { WavesyncError } from "./errors.js";
export type { ErrorCode } from "./errors.js";
export type { Row } from "./live.js";
export type { Change, JoinOptions, Parameter, Parameters, Value, Written } from "./wire.js";

/** How to open a database. */
export interface OpenOptions {
  /** `opfs` (the default) keeps it; `memory` is gone with the tab, and its own. */
  storage?: "opfs" | "memory";
  /** Where worker.js of this package is, if not where the bundler put it. */
  worker?: string | URL;
  /** Where wavesync_bg.wasm is, if not beside the worker. */
  wasm?: string | URL;
}

/** The version of this package. */
export const version: string = VERSION;

/** Opens a database, creating it if there is none of this name. */
export async function open(name: string, options: OpenOptions = {}): Promise<Database> {
  checkName(name);
  const { storage = "opfs", worker, wasm } = options;
  if (storage !== "opfs" && storage !== "memory") {
    throw fault(
      "bad_argument",
      `there is no storage ${JSON.stringify(storage)}`,
      "it is 'opfs' or 'memory'",
    );
  }
  const make = () =>
    worker
      ? new Worker(worker, { type: "module", name: `wavesync ${name}` })
      : // Bundlers find the file by this very expression.
        new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  const database = new Database(make, name);
  await database.start(storage === "memory", wasm === undefined ? undefined : absolute(wasm));
  return database;
}

/** Removes a database and all that it holds. No tab may have it open. */
export async function deleteDatabase(name: string): Promise<void> {
  checkName(name);
  const done = await navigator.locks.request(
    `wavesync:${name}`,
    { ifAvailable: true },
    async (lock) => {
      if (lock) await remove(name);
      return lock !== null;
    },
  );
  if (!done) {
    throw fault("in_use", `a tab has the database "${name}" open`, "close() it there first");
  }
}

function absolute(url: string | URL): string {
  return new URL(url, location.href).href;
}

function checkName(name: string): void {
  if (typeof name !== "string" || name === "" || name.length > 100) {
    throw fault(
      "bad_name",
      "a database has a name of 1 to 100 characters",
      "for example open('notes')",
    );
  }
}
