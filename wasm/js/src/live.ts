//! Queries that are asked again when what they read has changed.

import type { WavesyncError } from "./errors.js";
import type { Change, Value } from "./wire.js";

/** How a live query asks. */
export interface Source {
  tables: () => Promise<string[]>;
  rows: () => Promise<Row[]>;
}

export type Row = Record<string, Value>;

export class Live {
  #tables: Set<string> | undefined;
  #running = false;
  #again = false;
  #ended = false;
  #last: Row[] | undefined;

  constructor(
    readonly source: Source,
    readonly give: (rows: Row[]) => void,
    readonly failed: (error: WavesyncError) => void,
  ) {
    void this.run();
  }

  end(): void {
    this.#ended = true;
  }

  /** Asks again if it concerns what is read here. */
  heard(change: Change): void {
    if (change.schema) this.#tables = undefined;
    const read = this.#tables;
    if (!read || change.tables.some(({ table }) => read.has(table.toLowerCase()))) void this.run();
  }

  /** Asks, and once more if something changed meanwhile. */
  async run(): Promise<void> {
    this.#again = true;
    if (this.#running) return;
    this.#running = true;
    try {
      while (this.#again && !this.#ended) {
        this.#again = false;
        this.#tables ??= new Set((await this.source.tables()).map((name) => name.toLowerCase()));
        const rows = await this.source.rows();
        if (this.#ended || (this.#last && same(this.#last, rows))) continue;
        this.#last = rows;
        this.give(rows);
      }
    } catch (error) {
      if (!this.#ended) this.failed(error as WavesyncError);
    } finally {
      this.#running = false;
      // What came while the question failed is asked about, too.
      if (this.#again && !this.#ended) void this.run();
    }
  }
}

function same(a: Row[], b: Row[]): boolean {
  return a.length === b.length && a.every((row, index) => sameRow(row, b[index]));
}

function sameRow(a: Row, b: Row): boolean {
  const names = Object.keys(a);
  return (
    names.length === Object.keys(b).length && names.every((name) => sameValue(a[name], b[name]))
  );
}

function sameValue(a: Value | undefined, b: Value | undefined): boolean {
  if (a instanceof Uint8Array && b instanceof Uint8Array) {
    return a.length === b.length && a.every((byte, index) => byte === b[index]);
  }
  return Object.is(a, b);
}
