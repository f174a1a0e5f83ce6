//! The database in the Worker that has it: requests of all tabs, one after the other.
//!
//! A transaction of a tab has the database to itself until it ends. What a tab writes is recorded
//! with the number of its request in the same commit, so a request that is sent again to the next
//! leader is not done twice.

import { crashOf, fault, toFault, type Fault } from "./errors.js";
import type { Connection, Module } from "./module.js";
import { wasFull } from "./pool.js";
import type { Answer, Change, Joined, JoinOptions, News, Request, Value, Written } from "./wire.js";

/** A transaction that asks for nothing this long is rolled back, in milliseconds. */
const TRANSACTION_IDLE_MAX_MS = 10_000;
/** Of a remote commit with more rows than this, only the tables are told. */
const KEYS_MAX_ROWS = 1_000;
/** These need no database, or their own time. */
const UNQUEUED = new Set(["status", "peers", "events", "networkChanged", "pause", "resume"]);
/** Statements that cannot be in a transaction, or do nothing there. */
const ALONE = /(^|;)\s*(PRAGMA|VACUUM|ATTACH|DETACH)\b/i;
const READS = /^\s*(SELECT|VALUES|EXPLAIN|PRAGMA)\b/i;

interface Waiting {
  client: string;
  request: Request;
  done: (answer: Answer) => void;
}

export class Host {
  readonly #module: Module;
  readonly #path: string;
  readonly #own: string;
  readonly #tell: (news: News) => void;
  readonly #crashed: (error: Fault) => void;
  #broken = false;
  #connection: Connection;
  #waiting: Waiting[] = [];
  #transaction: { id: string; client: string; timer?: ReturnType<typeof setTimeout> } | undefined;
  #timedOut = new Set<string>();
  #remembers = false;
  #logged = 0;
  /** Answers that are not given yet. */
  readonly #underWay = new Set<Promise<Answer>>();
  #statusTimer: ReturnType<typeof setTimeout> | undefined;
  /** How this database takes part; the next leader goes on with it. */
  joined: Joined | null = null;

  constructor(
    module: Module,
    path: string,
    memory: boolean,
    own: string,
    tell: (news: News) => void,
    crashed: (error: Fault) => void,
  ) {
    this.#module = module;
    this.#path = path;
    this.#own = own;
    this.#tell = tell;
    this.#crashed = crashed;
    this.#connection = new module.Database(path, memory);
    this.#remembers = this.#exists("__wavesync_tab");
  }

  /** Answers a request, at once or when it is its turn. */
  submit(client: string, request: Request): Promise<Answer> {
    // The next leader answers.
    if (this.#broken) return new Promise(() => {});
    return new Promise((done) => {
      if (this.#transaction && !request.tx && !UNQUEUED.has(request.call)) {
        this.#waiting.push({ client, request, done });
      } else {
        void this.#start(client, request).then(done);
      }
    });
  }

  #start(client: string, request: Request): Promise<Answer> {
    const answer = this.#answer(client, request);
    this.#underWay.add(answer);
    return answer.finally(() => this.#underWay.delete(answer));
  }

  /** A tab is gone: what it had begun is rolled back. */
  gone(client: string): void {
    if (this.#broken) return;
    this.#waiting = this.#waiting.filter((waiting) => waiting.client !== client);
    if (this.#transaction?.client === client) this.#end(() => this.#connection.rollback());
    try {
      if (this.#remembers && !this.#connection.inTransaction()) {
        this.#connection.exec("DELETE FROM __wavesync_tab WHERE client = ?", [client]);
      }
    } finally {
      // Whoever waited for that tab's transaction has its turn also where there is no room to write.
      this.#next();
    }
  }

  /** Forgets the requests of tabs that are not among these. */
  keepOnly(clients: readonly string[]): void {
    if (this.#broken || !this.#remembers) return;
    const list = JSON.stringify(clients);
    this.#connection.exec(
      "DELETE FROM __wavesync_tab WHERE client NOT IN (SELECT value FROM json_each(?))",
      [list],
    );
  }

  /** The module has failed: nothing in it is called any more. */
  break(error: Fault): void {
    if (this.#broken) return;
    this.#broken = true;
    clearTimeout(this.#statusTimer);
    clearTimeout(this.#transaction?.timer);
    this.#crashed(error);
  }

  async close(): Promise<void> {
    if (this.#broken) return;
    if (this.joined) await this.#module.engineLeave(this.#path, false);
    // A pause, or somebody's leave: they end with the engine, and look at the database afterwards.
    while (this.#underWay.size > 0) await Promise.allSettled(this.#underWay);
    if (this.#broken) return;
    this.#end(() => this.#connection.rollback());
    this.#broken = true;
    clearTimeout(this.#statusTimer);
    this.#connection.free();
  }

  async #answer(client: string, request: Request): Promise<Answer> {
    const { number } = request;
    try {
      const result = await this.#run(client, request);
      return { number, result };
    } catch (thrown) {
      const crash = crashOf(thrown);
      if (crash) {
        this.break(crash);
        return { number, error: crash };
      }
      const error = toFault(thrown);
      // SQLite says that writing failed; the browser knows why.
      if (error.code === "io" && wasFull()) {
        error.code = "quota_exceeded";
        error.hint =
          "the browser gives this site no more room: delete data, or ask for persistent storage " +
          "with navigator.storage.persist(); nothing of this call was stored";
      }
      return { number, error };
    } finally {
      if (!this.#broken) {
        // What a statement takes is no idleness.
        if (request.tx && request.tx === this.#transaction?.id) this.#watch();
        this.#published();
        this.#next();
      }
    }
  }

  #next(): void {
    while (!this.#transaction) {
      const waiting = this.#waiting.shift();
      if (!waiting) return;
      void this.#start(waiting.client, waiting.request).then(waiting.done);
    }
  }

  /** Everything up to the first await is done before another request is looked at. */
  #run(client: string, request: Request): unknown {
    const { call, args } = request;
    if (request.tx && call !== "commit") this.#check(request.tx);
    switch (call) {
      case "exec":
      case "query":
        return this.#statement(client, request, call);
      case "describe":
        return this.#connection.describe(args[0] as string);
      case "begin":
        return this.#begin(client);
      case "commit":
        return this.#commit(client, request);
      case "rollback":
        return this.#end(() => this.#connection.rollback());
      case "export":
        return this.#connection.exportFile();
      case "import":
        return this.#import(args[0] as Uint8Array);
      default:
        return this.#engine(call, args);
    }
  }

  #statement(client: string, request: Request, call: "exec" | "query"): unknown {
    const [sql, params] = request.args as [string, unknown];
    const run = () => this.#connection[call](sql, params);
    if (request.tx || ALONE.test(sql) || (call === "query" && READS.test(sql))) return run();
    // Also of this tab: it may have asked the leader before it.
    if (request.again) {
      const before = this.#recall(client, request.number);
      if (before && call === "exec") return before;
      if (before) {
        throw fault(
          "result_lost",
          "the statement was done, but the tab that ran it is gone with " + "the rows that it gave",
          "read them again; do not repeat the statement",
        );
      }
    }
    if (client === this.#own) return run();
    this.#remember();
    this.#connection.begin();
    try {
      const result = run();
      this.#record(client, request, result);
      this.#connection.commit();
      return result;
    } catch (error) {
      this.#connection.rollback();
      throw error;
    }
  }

  #begin(client: string): string {
    const id = crypto.randomUUID();
    this.#connection.begin();
    this.#transaction = { id, client };
    this.#watch();
    return id;
  }

  #commit(client: string, request: Request): unknown {
    if (request.again && this.#recall(client, request.number)) return null;
    this.#check(request.tx ?? "");
    if (client !== this.#own) {
      this.#remember();
      this.#record(client, request, { changes: 0, lastInsertRowid: 0 });
    }
    this.#end(() => this.#connection.commit());
    return null;
  }

  #check(tx: string): void {
    if (this.#transaction?.id !== tx) {
      if (this.#timedOut.has(tx)) {
        throw fault(
          "transaction_timeout",
          `the transaction was rolled back: it asked for nothing for ${TRANSACTION_IDLE_MAX_MS / 1000} s`,
          "do what takes long before or after it; all tabs wait meanwhile",
        );
      }
      throw fault(
        "transaction_lost",
        "the tab that had the database is gone, and with it what " +
          "this transaction had not committed",
        "run the transaction again",
      );
    }
    if (!this.#connection.inTransaction()) {
      this.#end(() => this.#connection.rollback());
      throw fault(
        "transaction_over",
        "SQLite has rolled the transaction back after an error",
        "run it again",
      );
    }
    this.#watch();
  }

  /** Rolls the transaction back if it asks for nothing any more. */
  #watch(): void {
    const transaction = this.#transaction;
    if (!transaction) return;
    clearTimeout(transaction.timer);
    transaction.timer = setTimeout(() => {
      this.#timedOut.add(transaction.id);
      this.#end(() => this.#connection.rollback());
      this.#next();
    }, TRANSACTION_IDLE_MAX_MS);
  }

  #end(how: () => void): void {
    if (!this.#transaction) return;
    clearTimeout(this.#transaction.timer);
    this.#transaction = undefined;
    how();
  }

  #exists(table: string): boolean {
    const sql = "SELECT 1 FROM sqlite_schema WHERE name = ?";
    return this.#connection.query(sql, [table]).rows.length > 0;
  }

  /** What requests of other tabs have done, until they know it. */
  #remember(): void {
    if (this.#remembers) return;
    this.#connection.exec(
      "CREATE TABLE IF NOT EXISTS __wavesync_tab(client TEXT, number INTEGER, changes INTEGER, " +
        "rowid_ INTEGER, PRIMARY KEY(client, number)) WITHOUT ROWID",
      undefined,
    );
    // A rollback takes the table away again.
    this.#remembers = !this.#connection.inTransaction();
  }

  #record(client: string, request: Request, result: Written): void {
    this.#connection.exec("DELETE FROM __wavesync_tab WHERE client = ? AND number < ?", [
      client,
      request.oldest,
    ]);
    this.#connection.exec("INSERT INTO __wavesync_tab VALUES(?, ?, ?, ?)", [
      client,
      request.number,
      result.changes,
      result.lastInsertRowid,
    ]);
  }

  #recall(client: string, number: number): Written | undefined {
    if (!this.#remembers) return undefined;
    const sql = "SELECT changes, rowid_ FROM __wavesync_tab WHERE client = ? AND number = ?";
    const [row] = this.#connection.query(sql, [client, number]).rows;
    return row && { changes: row[0] as number, lastInsertRowid: row[1] as number | bigint };
  }

  #import(bytes: Uint8Array): null {
    if (this.joined) {
      throw fault(
        "already_joined",
        "a database that is joined is not replaced under the engine",
        "call leave() first, and join() afterwards",
      );
    }
    this.#connection.importFile(bytes);
    this.#remembers = this.#exists("__wavesync_tab");
    this.#tell({ kind: "change", change: { tables: [], schema: true, remote: false } });
    return null;
  }

  /** Tells what was committed. */
  #published(): void {
    const changes = this.#connection.takeChanges();
    if (!changes) return;
    this.#tell({ kind: "change", change: { ...changes, remote: false } as Change });
    if (this.joined) this.#module.engineCommitted(this.#path);
  }

  #engine(call: string, args: unknown[]): unknown {
    const engine = this.#module;
    switch (call) {
      case "join":
        return this.join(args[0] as JoinOptions);
      case "leave":
        return this.#leave(args[0] as boolean);
      case "status":
        return JSON.parse(engine.engineStatus(this.#path));
      case "peers":
        return JSON.parse(engine.enginePeers(this.#path));
      case "events":
        return JSON.parse(engine.engineEvents(this.#path, (args[0] as number) ?? 0));
      case "pause":
        return this.#pause(true, engine.enginePause(this.#path));
      case "resume":
        return this.#pause(false, engine.engineResume(this.#path));
      case "panic":
        return engine.panicForTest(args[0] as boolean);
      case "networkChanged":
        return engine.engineNetworkChanged(this.#path);
      default:
        throw fault("engine", `there is no call ${call}`);
    }
  }

  /** Joins, and remembers how for the next leader. */
  join(options: Joined): string {
    const { topic, passphrase, paused, ...rest } = options;
    const keys = this.#connection.query("PRAGMA foreign_keys", undefined).rows[0]?.[0] === 1;
    const { state } = JSON.parse(this.#module.engineStatus(this.#path)) as { state?: string };
    const site = this.#module.engineJoin(this.#path, topic, passphrase, JSON.stringify(rest), keys);
    // What is decided about rows from before joining is in the database; said again later, it would
    // be a decision about what is met then. So are the tables, of which some may be untracked or
    // dropped by then, and the name.
    const { existing, tables, name, ...remembered } = options;
    // As with the engine: while one runs, a call adds peers, and the relays stay those of the first.
    const before = state === "failed" || state === "stopped" ? null : this.joined;
    const peers = [...new Set([...(before?.peers ?? []), ...(options.peers ?? [])])];
    this.joined = { ...remembered, relays: before?.relays ?? options.relays, peers };
    this.#logged = this.#newest();
    this.#module.engineOnChange(this.#path, (tables) => this.#remote(JSON.parse(tables)));
    this.#module.engineOnStatus(this.#path, () => this.#statusSoon());
    this.#tell({ kind: "joined", options: this.joined });
    if (existing === "new_ids") this.#renumbered();
    if (paused) void this.#module.enginePause(this.#path);
    return site;
  }

  /** Off the network, or on it again; the next leader goes on with that. */
  #pause<T>(paused: boolean, done: T): T {
    if (this.joined) {
      this.joined = { ...this.joined, paused };
      this.#tell({ kind: "joined", options: this.joined });
    }
    return done;
  }

  /** Rows of any table may have new ids, and refer to others by new ones. */
  #renumbered(): void {
    const { rows } = this.#connection.query(
      "SELECT name FROM sqlite_schema WHERE type = 'table' AND substr(name, 1, 11) <> '__wavesync_'",
      undefined,
    );
    const tables = (rows as [string][]).map(([table]) => ({ table, keys: null }));
    this.#tell({ kind: "change", change: { tables, schema: false, remote: false } });
  }

  async #leave(forget: boolean): Promise<null> {
    await this.#module.engineLeave(this.#path, forget);
    if (forget && !this.#transaction) {
      this.#connection.exec("DROP TABLE IF EXISTS __wavesync_tab", undefined);
      this.#remembers = false;
    }
    this.joined = null;
    this.#tell({ kind: "joined", options: null });
    return null;
  }

  #statusSoon(): void {
    this.#statusTimer ??= setTimeout(() => {
      this.#statusTimer = undefined;
      const status = JSON.parse(this.#module.engineStatus(this.#path));
      const peers = JSON.parse(this.#module.enginePeers(this.#path));
      this.#tell({ kind: "status", status, peers });
    }, 50);
  }

  #newest(): number {
    if (!this.#exists("__wavesync_log")) return 0;
    return this.#connection.query("SELECT coalesce(max(seq), 0) FROM __wavesync_log", undefined)
      .rows[0][0] as number;
  }

  /** The engine has committed rows of others: the log tells their keys. */
  #remote(tables: string[] | null): void {
    const change: Change = { tables: [], schema: tables === null, remote: true };
    // While a transaction is open the connection may not see them yet.
    const keys = this.#transaction ? new Map<string, Value[] | null>() : this.#keysFromLog();
    for (const table of tables ?? keys.keys()) {
      change.tables.push({ table, keys: keys.get(table) ?? null });
    }
    this.#tell({ kind: "change", change });
  }

  #keysFromLog(): Map<string, Value[] | null> {
    const found = new Map<string, Value[] | null>();
    const newest = this.#newest();
    const { rows } = this.#connection.query(
      `SELECT t.name, l.pk, l.cols = -2 OR t.key_columns > 1 FROM __wavesync_log l
       JOIN __wavesync_table t ON t.num = l.tbl
       WHERE l.seq > ? AND l.seq <= ? AND (l.at IS NULL OR l.cols = -2) LIMIT ?`,
      [this.#logged, newest, KEYS_MAX_ROWS + 1],
    );
    this.#logged = newest;
    for (const [table, key, many] of rows as [string, Value, number][]) {
      const keys = found.get(table);
      if (many || rows.length > KEYS_MAX_ROWS) found.set(table, null);
      else if (keys === undefined) found.set(table, [key]);
      else keys?.push(key);
    }
    return found;
  }
}
