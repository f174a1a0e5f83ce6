//! A database, as a page uses it. Every tab of a site may open the same one.

import { WavesyncError } from "./errors.js";
import { Link } from "./link.js";
import { Live, type Row } from "./live.js";
import type {
  Change,
  Described,
  JoinOptions,
  News,
  Parameters,
  Rows,
  Value,
  Written,
} from "./wire.js";

/** What there is to listen to. */
export interface Events {
  /** A commit, of any tab or of another member. */
  change: Change;
  /** The engine's state: `wavesync_status` and `wavesync_peers`. */
  status: { status: Status; peers: Peer[] };
  /** This tab has the database now (true), or another one has (false). */
  role: boolean;
}

/** As the table `wavesync_status`. */
export type Status = Record<string, unknown> & {
  joined: boolean;
  state: string;
  peers_connected: number;
  rows_behind: number;
  last_error: string;
  hint: string;
};
/** As the table `wavesync_peers`. */
export type Peer = Record<string, unknown> & {
  peer_id: string;
  name: string;
  path: string;
  state: string;
};
/** As the table `wavesync_events`. */
export type EngineEvent = {
  number: number;
  at: string;
  level: string;
  code: string;
  message: string;
  hint: string;
  peer_id: string | null;
};

/** Runs statements: a database, or a transaction in one. */
export abstract class Runner {
  protected abstract call<T>(call: string, args: unknown[]): Promise<T>;

  /** Runs one statement or several, all of them or none. */
  async exec(sql: string, params?: Parameters): Promise<Written> {
    return this.call<Written>("exec", [sql, params]);
  }

  /** Runs one statement and gives its rows. */
  async query<T = Row>(sql: string, params?: Parameters): Promise<T[]> {
    return toObjects(await this.call<Rows>("query", [sql, params])) as T[];
  }

  /** The first row, or undefined. */
  async get<T = Row>(sql: string, params?: Parameters): Promise<T | undefined> {
    return (await this.query<T>(sql, params))[0];
  }

  /** Checks a statement; it stays prepared as long as it is used. */
  async prepare(sql: string): Promise<Statement> {
    return new Statement(this, sql, await this.call<Described>("describe", [sql]));
  }
}

/** A statement that was checked once and runs with different parameters. */
export class Statement {
  /** Names of its columns. */
  readonly columns: readonly string[];
  /** How many parameters it takes. */
  readonly parameters: number;
  /** Whether it writes nothing. */
  readonly readonly: boolean;
  readonly #runner: Runner;

  constructor(
    runner: Runner,
    readonly sql: string,
    described: Described,
  ) {
    this.#runner = runner;
    this.columns = described.columns;
    this.parameters = described.parameters;
    this.readonly = described.readonly;
  }

  /** Runs it for what it does. */
  run(params?: Parameters): Promise<Written> {
    return this.#runner.exec(this.sql, params);
  }

  /** Its rows. */
  all<T = Row>(params?: Parameters): Promise<T[]> {
    return this.#runner.query<T>(this.sql, params);
  }

  /** Its first row, or undefined. */
  get<T = Row>(params?: Parameters): Promise<T | undefined> {
    return this.#runner.get<T>(this.sql, params);
  }
}

/** What `transaction` gives to its callback. */
export class Transaction extends Runner {
  constructor(
    readonly link: Link,
    readonly id: string,
  ) {
    super();
  }

  protected call<T>(call: string, args: unknown[]): Promise<T> {
    return this.link.call<T>(call, args, this.id);
  }
}

export class Database extends Runner {
  readonly #link: Link;
  readonly #lives = new Set<Live>();
  readonly #listeners = new Map<keyof Events, Set<(event: never) => void>>();
  #leads = false;

  /** @internal */
  constructor(
    worker: () => Worker,
    readonly name: string,
  ) {
    super();
    this.#link = new Link(worker, (news) => this.#heard(news));
  }

  /** @internal */
  async start(memory: boolean, wasm: string | undefined): Promise<void> {
    this.#leads = await this.#link.open({ kind: "open", name: this.name, memory, wasm });
  }

  /** Whether this tab has the database; another one passes its requests on. */
  get leads(): boolean {
    return this.#leads;
  }

  protected call<T>(call: string, args: unknown[]): Promise<T> {
    return this.#link.call<T>(call, args);
  }

  /** Runs `body` in a transaction: commits what it did, or takes it back if it throws. */
  async transaction<T>(body: (tx: Transaction) => Promise<T>): Promise<T> {
    const id = await this.#link.call<string>("begin");
    let result: T;
    try {
      result = await body(new Transaction(this.#link, id));
    } catch (error) {
      // It may be over already; what the caller threw says more.
      await this.#link.call("rollback", [], id).catch(() => {});
      throw error;
    }
    await this.#link.call("commit", [], id);
    return result;
  }

  /** Gives the rows of a query, now and whenever they are others. Returns how to stop it. */
  liveQuery<T = Row>(
    sql: string,
    params: Parameters | undefined,
    give: (rows: T[]) => void,
    failed: (error: WavesyncError) => void = (error) => console.error(error),
  ): () => void {
    const tables = async () => (await this.call<Described>("describe", [sql])).tables;
    const rows = () => this.query(sql, params);
    const live = new Live({ tables, rows }, give as (rows: Row[]) => void, failed);
    this.#lives.add(live);
    return () => {
      live.end();
      this.#lives.delete(live);
    };
  }

  /** Listens; returns how to stop. */
  on<K extends keyof Events>(event: K, listener: (event: Events[K]) => void): () => void {
    const listeners = this.#listeners.get(event) ?? new Set();
    this.#listeners.set(event, listeners);
    listeners.add(listener as (event: never) => void);
    return () => listeners.delete(listener as (event: never) => void);
  }

  /** Hears of every commit, of any tab or member: tables and keys. */
  onChange(listener: (change: Change) => void): () => void {
    return this.on("change", listener);
  }

  /** Makes this database a member of a group; gives its site id. */
  join(options: JoinOptions): Promise<string> {
    return this.call<string>("join", [options]);
  }

  /** Stops syncing. With `forget`, a plain database remains. */
  async leave({ forget = false } = {}): Promise<void> {
    await this.call("leave", [forget]);
  }

  /** Leaves the network for a while; changes go on being recorded. Nobody is connected afterwards. */
  async pause(): Promise<void> {
    await this.call("pause", []);
  }

  /** Returns to the network. */
  async resume(): Promise<void> {
    await this.call("resume", []);
  }

  status(): Promise<Status> {
    return this.call<Status>("status", []);
  }

  peers(): Promise<Peer[]> {
    return this.call<Peer[]>("peers", []);
  }

  /** What happened after the event with this number. */
  events(since = 0): Promise<EngineEvent[]> {
    return this.call<EngineEvent[]>("events", [since]);
  }

  /** The database as a file that any SQLite opens. */
  export(): Promise<Uint8Array> {
    return this.call<Uint8Array>("export", []);
  }

  /** Replaces the content by that of a database file: all of it or nothing. */
  async import(file: Uint8Array | ArrayBuffer): Promise<void> {
    await this.call("import", [file instanceof Uint8Array ? file : new Uint8Array(file)]);
  }

  /** Ends this tab's part; another tab that has the database open takes over. */
  async close(): Promise<void> {
    for (const live of this.#lives) live.end();
    this.#lives.clear();
    await this.#link.close();
  }

  #emit<K extends keyof Events>(event: K, value: Events[K]): void {
    for (const listener of this.#listeners.get(event) ?? []) {
      (listener as (event: Events[K]) => void)(value);
    }
  }

  #heard(news: News | { kind: "role"; leader: boolean }): void {
    if (news.kind === "role") {
      this.#leads = news.leader;
      // What the former leader had committed and not told.
      for (const live of this.#lives) void live.run();
      this.#emit("role", news.leader);
    } else if (news.kind === "change") {
      for (const live of this.#lives) live.heard(news.change);
      this.#emit("change", news.change);
    } else if (news.kind === "status") {
      this.#emit("status", { status: news.status as Status, peers: news.peers as Peer[] });
    }
  }
}

function toObjects({ columns, rows }: Rows): Row[] {
  return rows.map((row) => {
    const object: Record<string, Value> = {};
    for (let index = 0; index < columns.length; index++) object[columns[index]] = row[index];
    return object;
  });
}
