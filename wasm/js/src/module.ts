//! The WebAssembly module: loaded once in a Worker. Types of what is used of it.

import type { Described, Rows, Written } from "./wire.js";
import { fault } from "./errors.js";
// @ts-ignore: made by the build
import init, * as made from "../generated/wavesync.js";

/** A connection. */
export interface Connection {
  exec(sql: string, params: unknown): Written;
  query(sql: string, params: unknown): Rows;
  describe(sql: string): Described;
  begin(): void;
  commit(): void;
  rollback(): void;
  inTransaction(): boolean;
  takeChanges(): { tables: { table: string; keys: unknown[] | null }[]; schema: boolean } | null;
  exportFile(): Uint8Array;
  importFile(bytes: Uint8Array): void;
  free(): void;
}

export interface Module {
  version(): string;
  panicForTest(later: boolean): void;
  poolInstall(directory: string): Promise<void>;
  Database: new (path: string, memory: boolean) => Connection;
  engineJoin(
    path: string,
    topic: string,
    passphrase: string,
    options: string,
    keys: boolean,
  ): string;
  engineLeave(path: string, forget: boolean): Promise<void>;
  enginePause(path: string): Promise<void>;
  engineResume(path: string): void;
  engineNetworkChanged(path: string): void;
  engineCommitted(path: string): void;
  engineStatus(path: string): string;
  enginePeers(path: string): string;
  engineEvents(path: string, since: number): string;
  engineOnChange(path: string, callback?: (tables: string) => void): void;
  engineOnStatus(path: string, callback?: () => void): void;
}

let loading: Promise<Module> | undefined;

/** Loads the module. Bundlers find the file by this very expression. */
export function load(wasm?: string): Promise<Module> {
  loading ??= begin(wasm ?? new URL("./wavesync_bg.wasm", import.meta.url).href);
  return loading;
}

async function begin(url: string): Promise<Module> {
  try {
    await init({ module_or_path: url });
  } catch (error) {
    const text = String((error as Error).message ?? error);
    if (/Content Security Policy|unsafe-eval|disallowed by embedder/i.test(text)) {
      throw fault(
        "wasm_blocked",
        `the page's Content-Security-Policy forbids WebAssembly: ${text}`,
        "add 'wasm-unsafe-eval' to script-src, and the file's origin to connect-src",
      );
    }
    throw fault(
      "wasm_failed",
      `${url} cannot be loaded: ${text}`,
      "put wavesync_bg.wasm next to worker.js, or name its place: open(name, {wasm: url})",
    );
  }
  return made as unknown as Module;
}
