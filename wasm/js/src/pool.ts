//! The folder of a database in the origin private file system: is it there, is it sound.
//!
//! The pool of access handles (in the module) empties files whose header it does not understand,
//! and takes a file without header for the one that it looked at before. So this looks first.

import { fault } from "./errors.js";

const HEADER_BYTES = 4096;
const NAME_BYTES = 512;
/** SQLITE_OPEN_ flags: main database, its journal, super-journal, WAL; and delete on close. */
const PERSISTENT = 0x100 | 0x800 | 0x4000 | 0x80000;
const DELETE_ON_CLOSE = 0x8;
export const DATABASE = "/main.db";
/** Beside the database: what tells it from a copy, and a file that is being imported. */
const FILES = [DATABASE, `${DATABASE}-wavesync-id`, "/import"];
const KNOWN = new Set(FILES.flatMap((path) => [path, `${path}-wal`, `${path}-journal`]));

/** The folder's path. */
export function directory(name: string): string {
  return `.wavesync/${encodeURIComponent(name)}`;
}

/** The folder that holds all databases of this origin. */
export async function root(): Promise<FileSystemDirectoryHandle> {
  if (!globalThis.isSecureContext) {
    throw fault(
      "no_opfs",
      "a page that came over plain http may not store files",
      "serve the page over https (or from localhost); open(name, {storage: 'memory'}) works " +
        "without, and keeps nothing",
    );
  }
  try {
    return await navigator.storage.getDirectory();
  } catch (error) {
    throw fault(
      "no_opfs",
      `this window may not store files: ${(error as Error).message}`,
      "private windows of some browsers, and old browsers, have no origin private file system; " +
        "open(name, {storage: 'memory'}) works without, and keeps nothing",
    );
  }
}

/** Refuses a pool in which something would be lost; removes files that were never used. */
export async function inspect(name: string): Promise<void> {
  let folder = await root();
  try {
    for (const part of [...directory(name).split("/"), ".opaque"]) {
      folder = await folder.getDirectoryHandle(part);
    }
  } catch {
    return; // A new database.
  }
  const files: FileSystemFileHandle[] = [];
  for await (const handle of folder.values()) {
    if (handle.kind === "file") files.push(handle as FileSystemFileHandle);
  }
  const found = new Map<string, number>();
  // All at once: each look is a message to another process and back.
  const looks = files.map(async (file) => ({ file, ...(await look(name, file)) }));
  for (const { file, path, size } of await Promise.all(looks)) {
    if (path === undefined) await folder.removeEntry(file.name);
    else if (path !== null && found.has(path)) {
      throw corrupt(name, `two files say that they are ${path}`);
    } else if (path !== null) found.set(path, size);
  }
  if (!found.has(DATABASE) && (found.get(`${DATABASE}-wal`) ?? 0) > 0) {
    throw corrupt(name, "there is a write-ahead log, but no database");
  }
}

/** The path of a file of the pool and the size of its content; null for a file that is free,
 *  undefined for one that was made and never written. */
async function look(name: string, file: FileSystemFileHandle) {
  const data = await file.getFile();
  const header = new Uint8Array(await data.slice(0, HEADER_BYTES).arrayBuffer());
  const size = data.size - HEADER_BYTES;
  if (size < 0 && header.every((byte) => byte === 0)) return { path: undefined, size };
  return { path: pathOf(name, header, size), size };
}

function pathOf(name: string, header: Uint8Array, size: number): string | null {
  const length = header.indexOf(0);
  if (length === 0) {
    if (size > 0) throw corrupt(name, "a file with content has no name");
    return null;
  }
  const path = new TextDecoder().decode(header.subarray(0, length));
  if (length < 0 || header.length < NAME_BYTES + 4 || !KNOWN.has(path)) throw damaged(name);
  const flags = new DataView(header.buffer).getUint32(NAME_BYTES);
  if (!(flags & PERSISTENT) || flags & DELETE_ON_CLOSE) throw damaged(name);
  return path;
}

function damaged(name: string) {
  return corrupt(name, "the header of a file is damaged");
}

function corrupt(name: string, what: string) {
  return fault(
    "corrupt_pool",
    `the files of the database "${name}" are damaged: ${what}; nothing was changed`,
    `deleteDatabase(${JSON.stringify(name)}) removes them; join again and members send their rows anew`,
  );
}

/** Removes everything of a database that nobody has open. */
export async function remove(name: string): Promise<void> {
  let folder = await root();
  const [first, last] = directory(name).split("/");
  try {
    folder = await folder.getDirectoryHandle(first);
    await folder.removeEntry(last, { recursive: true });
  } catch (error) {
    if ((error as DOMException).name !== "NotFoundError") throw error;
  }
}

let refused = false;

/** Whether the browser has refused to give room since this was asked last. SQLite says only that
 *  writing failed, so what the access handles throw is looked at. */
export function wasFull(): boolean {
  const full = refused;
  refused = false;
  return full;
}

/** Begins to look. Once in a Worker. */
export function watchQuota(): void {
  type Name = "write" | "truncate" | "flush";
  const handle = (globalThis as unknown as { FileSystemSyncAccessHandle?: { prototype: object } })
    .FileSystemSyncAccessHandle?.prototype as
    Record<Name, (...args: unknown[]) => unknown> | undefined;
  if (!handle) return;
  for (const name of ["write", "truncate", "flush"] as const) {
    const original = handle[name];
    handle[name] = function (...args) {
      try {
        return original.apply(this, args);
      } catch (error) {
        refused ||= (error as DOMException).name === "QuotaExceededError";
        throw error;
      }
    };
  }
}
