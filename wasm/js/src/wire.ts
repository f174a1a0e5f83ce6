//! What pages, Workers and tabs say to each other.

import type { Fault } from "./errors.js";

/** A value of SQL: INTEGER is a bigint where a number would not be exact. */
export type Value = null | number | bigint | string | Uint8Array;
/** A parameter: booleans are taken as 0 and 1. */
export type Parameter = Value | boolean | ArrayBuffer | undefined;
/** By position, or by name without `:`, `@` or `$`. */
export type Parameters = readonly Parameter[] | Readonly<Record<string, Parameter>>;

/** What a write did. */
export interface Written {
  /** Rows inserted, updated and deleted, also by triggers. */
  changes: number;
  lastInsertRowid: number | bigint;
}

export interface Rows extends Written {
  columns: string[];
  rows: Value[][];
}

/** What a statement is. */
export interface Described {
  columns: string[];
  parameters: number;
  readonly: boolean;
  /** Tables that it reads, also through views. */
  tables: string[];
}

/** What one commit changed. */
export interface Change {
  tables: {
    table: string;
    /** Keys of the changed rows (a list for a key of several columns); null: any row. */
    keys: (Value | Value[])[] | null;
  }[];
  /** Tables may have been created, altered or dropped. */
  schema: boolean;
  /** It came from another member of the group. */
  remote: boolean;
}

/** How to take part in a group: `wavesync_join`'s options that a browser has. */
export interface JoinOptions {
  topic: string;
  passphrase: string;
  relays?: string[];
  peers?: string[];
  tables?: string[];
  adopt_schema?: boolean;
  existing?: "same" | "new_ids";
  name?: string;
}

/** How a database takes part, for the next tab that has it. */
export type Joined = JoinOptions & { paused?: boolean };

/** What a tab asks of the one that has the database. */
export interface Request {
  /** Rising in each tab. */
  number: number;
  /** Every request below this one was answered. */
  oldest: number;
  call: string;
  args: unknown[];
  /** The transaction that it belongs to. */
  tx?: string;
  /** It was sent to a leader that is gone: it may have been done. */
  again?: boolean;
}

export type Answer = { number: number; result: unknown } | { number: number; error: Fault };

/** What is told to every tab. */
export type News =
  | { kind: "change"; change: Change }
  | { kind: "status"; status: unknown; peers: unknown }
  | { kind: "joined"; options: Joined | null };

/** Between the Workers of several tabs. */
export type TabMessage =
  | { kind: "hello"; from: string; version: string }
  | { kind: "welcome"; leader: string; joined: Joined | null }
  | { kind: "loading" }
  | { kind: "refused"; error: Fault }
  | { kind: "leader"; leader: string }
  | { kind: "request"; from: string; to: string; request: Request }
  | { kind: "answer"; answer: Answer }
  | { kind: "bye"; from: string }
  | { kind: "news"; news: News };

/** From a page to its Worker. */
export type ToWorker =
  | { kind: "open"; name: string; memory: boolean; wasm?: string; joined?: Joined | null }
  | { kind: "request"; request: Request }
  | { kind: "close" };

/** From a Worker to its page. */
export type FromWorker =
  | { kind: "opened"; leader: boolean }
  | { kind: "failed"; error: Fault }
  | { kind: "answer"; answer: Answer }
  | { kind: "news"; news: News }
  | { kind: "role"; leader: boolean }
  | { kind: "crashed"; error: Fault; joined: Joined | null }
  | { kind: "closed" };
