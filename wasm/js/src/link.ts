//! A page's connection to its Worker: requests, answers, news.

import { WavesyncError, fault } from "./errors.js";
import type { FromWorker, Joined, News, Request, ToWorker } from "./wire.js";

/** A Worker that fails is replaced, but no more often than so within this time: what made it fail may
 *  do so again. */
const RESTARTS_MAX = 3;
const RESTARTS_WITHIN_MS = 60_000;

interface Pending {
  resolve: (result: unknown) => void;
  reject: (error: WavesyncError) => void;
}

export class Link {
  readonly #make: () => Worker;
  #worker: Worker;
  readonly #pending = new Map<number, Pending>();
  readonly #news: (news: News | { kind: "role"; leader: boolean }) => void;
  #next = 0;
  #closed: WavesyncError | undefined;
  #opening: (ToWorker & { kind: "open" }) | undefined;
  #restarts: number[] = [];
  #closing: Promise<void> | undefined;
  #whenClosed: (() => void) | undefined;

  constructor(make: () => Worker, news: (news: News | { kind: "role"; leader: boolean }) => void) {
    this.#make = make;
    this.#worker = start(make);
    this.#news = news;
  }

  /** Tells the Worker which database it is about; gives whether this tab has it. */
  open(message: ToWorker & { kind: "open" }): Promise<boolean> {
    this.#opening = message;
    return new Promise((resolve, reject) => {
      const forbidden = watchPolicy();
      const failed = (error: WavesyncError) => {
        this.#end(error);
        reject(error);
      };
      this.#worker.onerror = (event) => {
        event.preventDefault();
        // The report of a violation may come after the error.
        setTimeout(() => failed(forbidden() ?? workerFailed(event.message)), 50);
      };
      this.#worker.onmessage = ({ data }: MessageEvent<FromWorker>) => {
        if (data.kind === "failed") failed(new WavesyncError(data.error));
        else if (data.kind === "crashed") {
          this.#crashed(new WavesyncError(data.error), data.joined).then(resolve, reject);
        }
        else if (data.kind === "opened") resolve(data.leader);
        else this.#heard(data);
      };
      this.#worker.postMessage(message);
    });
  }

  call<T>(call: string, args: unknown[] = [], tx?: string): Promise<T> {
    if (this.#closed) return Promise.reject(this.#closed);
    const number = ++this.#next;
    const oldest = this.#pending.keys().next().value ?? number;
    const request: Request = { number, oldest, call, args };
    if (tx) request.tx = tx;
    return new Promise((resolve, reject) => {
      this.#pending.set(number, { resolve: resolve as (result: unknown) => void, reject });
      try {
        this.#worker.postMessage({ kind: "request", request } satisfies ToWorker);
      } catch (error) {
        this.#pending.delete(number);
        reject(
          fault(
            "bad_parameter",
            (error as Error).message,
            "a parameter must be null, a number, a bigint, a boolean, a string or a Uint8Array",
          ),
        );
      }
    });
  }

  /** Closes once, however often it is called. */
  close(): Promise<void> {
    return (this.#closing ??= this.#close());
  }

  async #close(): Promise<void> {
    if (this.#closed) return;
    const ended = new Promise<void>((resolve) => (this.#whenClosed = resolve));
    this.#worker.postMessage({ kind: "close" } satisfies ToWorker);
    await ended;
    this.#end(closed());
  }

  #heard(message: FromWorker): void {
    switch (message.kind) {
      case "answer": {
        const { answer } = message;
        const pending = this.#pending.get(answer.number);
        this.#pending.delete(answer.number);
        if ("error" in answer) pending?.reject(new WavesyncError(answer.error));
        else pending?.resolve(answer.result);
        break;
      }
      case "news":
        this.#news(message.news);
        break;
      case "role":
        this.#news(message);
        break;
      case "closed":
        this.#whenClosed?.();
        break;
    }
  }

  /** Whatever ended it, who waits for the end has it. */
  #end(error: WavesyncError): void {
    this.#closed ??= error;
    this.#worker.terminate();
    this.#reject(error);
    this.#whenClosed?.();
  }

  #reject(error: WavesyncError): void {
    for (const { reject } of this.#pending.values()) reject(error);
    this.#pending.clear();
  }

  /** The Worker has failed and is gone: another one goes on with the files. What was in memory only
   *  is lost, and no empty database takes its place. Gives whether this tab has the database. */
  async #crashed(error: WavesyncError, joined: Joined | null): Promise<boolean> {
    const now = performance.now();
    this.#restarts = this.#restarts.filter((at) => now - at < RESTARTS_WITHIN_MS);
    const last = this.#opening?.memory || this.#restarts.length >= RESTARTS_MAX;
    if (last || !this.#opening || this.#whenClosed) {
      this.#end(error);
      throw error;
    }
    this.#restarts.push(now);
    this.#reject(error);
    this.#worker.terminate();
    this.#worker = start(this.#make);
    const leader = await this.open({ ...this.#opening, joined });
    this.#news({ kind: "role", leader });
    return leader;
  }
}

/** Starts a Worker, or says that the page may not. */
export function start(make: () => Worker): Worker {
  try {
    return make();
  } catch (error) {
    throw blocked((error as Error).message);
  }
}

/** Listens for a violation of the page's policy; gives the error if there was one. */
function watchPolicy(): () => WavesyncError | undefined {
  let found: WavesyncError | undefined;
  const heard = (event: SecurityPolicyViolationEvent) => {
    if (/^(worker|child|script|default)-src/.test(event.effectiveDirective)) {
      found = blocked(`${event.effectiveDirective} does not allow ${event.blockedURI}`);
    }
  };
  document.addEventListener("securitypolicyviolation", heard);
  return () => {
    document.removeEventListener("securitypolicyviolation", heard);
    return found;
  };
}

function blocked(why: string): WavesyncError {
  return fault(
    "worker_blocked",
    `the page's Content-Security-Policy blocks the worker script: ${why}`,
    "allow the script's origin in worker-src (or script-src), for example worker-src 'self'",
  );
}

function workerFailed(message: string | undefined): WavesyncError {
  return fault(
    "worker_failed",
    `the worker script cannot be loaded${message ? `: ${message}` : ""}`,
    "serve worker.js and wavesync_bg.wasm of this package beside the script, or name the place: " +
      "open(name, {worker: url})",
  );
}

function closed(): WavesyncError {
  return fault("closed", "this database is closed", "open() it again");
}
