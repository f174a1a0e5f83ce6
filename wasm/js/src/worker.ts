//! The Worker of one tab. Web Locks elect one Worker of all tabs to hold the database; the others
//! pass requests to it, and one of them takes over when it ends.

import { crashOf, fault, toFault, type Fault } from "./errors.js";
import { Host } from "./host.js";
import { load } from "./module.js";
import { DATABASE, directory, inspect, root, watchQuota } from "./pool.js";
import { VERSION } from "./version.js";
import type {
  Answer,
  FromWorker,
  Joined,
  News,
  Request,
  TabMessage,
  ToWorker,
} from "./wire.js";

/** The files of a tab that has just ended may be held this much longer, in milliseconds. */
const RELEASE_MAX_MS = 5_000;
/** A leader that does not answer for this long is given up, in milliseconds. */
const WELCOME_MAX_MS = 15_000;
/** The first queries after a take-over go before the group's key is derived, in milliseconds. */
const REJOIN_AFTER_MS = 100;

/** The page, as its Worker sees it. TypeScript knows either pages or Workers. */
const page = self as unknown as {
  close(): void;
  postMessage(message: FromWorker): void;
  onmessage: (event: MessageEvent<ToWorker>) => void;
};
const post = (message: FromWorker) => page.postMessage(message);
const never = new Promise<void>(() => {});

/** Ends this Worker, and with it its locks: another one takes the database. The page makes a new
 *  one of its own. Answers that were given are sent first. */
function crashed(error: Fault, joined: Joined | null): void {
  setTimeout(() => {
    post({ kind: "crashed", error, joined });
    page.close();
  });
}

/** A Worker's part among the tabs of one database. */
class Tab {
  readonly #id = crypto.randomUUID();
  readonly #prefix: string;
  readonly #pending = new Map<number, Request>();
  readonly #everybody: BroadcastChannel;
  readonly #toLeader: BroadcastChannel;
  readonly #mine: BroadcastChannel;
  readonly #clients = new Map<string, BroadcastChannel>();
  #host: Host | undefined;
  #leader: string | undefined;
  #joined: Joined | null = null;
  #isOpen = false;
  #leads = false;
  #release: (() => void) | undefined;
  #giveUp: ReturnType<typeof setTimeout> | undefined;

  constructor(
    readonly name: string,
    readonly wasm: string | undefined,
    joined: Joined | null,
  ) {
    this.#joined = joined;
    this.#prefix = `wavesync:${name}`;
    this.#everybody = new BroadcastChannel(this.#prefix);
    this.#toLeader = new BroadcastChannel(`${this.#prefix}:leader`);
    this.#mine = new BroadcastChannel(`${this.#prefix}:tab:${this.#id}`);
    this.#everybody.onmessage = ({ data }) => this.#heard(data);
    this.#mine.onmessage = ({ data }) => this.#heard(data);
  }

  async open(): Promise<void> {
    // Compiled while the locks and the files are looked at, and by every tab: whoever takes over
    // has it. Why it failed is told below.
    const loading = load(this.wasm);
    loading.catch(() => {});
    // Others learn from this lock that this tab has ended.
    const lock = this.#lockOf(this.#id);
    await new Promise<void>((held, failed) => {
      navigator.locks.request(lock, () => (held(), never)).catch(failed);
    }).catch(async (error) => {
      // A window that may not store anything has no locks either.
      await root();
      throw error;
    });
    this.#expectAnswer();
    void navigator.locks.request(this.#prefix, () => this.#lead());
    this.#hello();
    await loading;
  }

  /** The tab that has the database says so, or that it is still loading. */
  #expectAnswer(): void {
    clearTimeout(this.#giveUp);
    this.#giveUp = setTimeout(() => {
      this.#fail(
        fault(
          "in_use",
          "another tab has this database and does not answer",
          "close or reload the other tabs of this site",
        ),
      );
    }, WELCOME_MAX_MS);
  }

  request(request: Request): void {
    this.#pending.set(request.number, request);
    if (this.#host) void this.#serve(request);
    else if (this.#leader) this.#send(request);
  }

  break(error: Fault): void {
    this.#host?.break(error);
  }

  async close(): Promise<void> {
    if (this.#host) await this.#host.close();
    else this.#toLeader.postMessage({ kind: "bye", from: this.#id } satisfies TabMessage);
    this.#release?.();
    post({ kind: "closed" });
  }

  #dismissGiveUp(): void {
    clearTimeout(this.#giveUp);
    this.#giveUp = undefined;
  }

  #lockOf(id: string): string {
    return `${this.#prefix}:tab:${id}`;
  }

  #hello(): void {
    this.#toLeader.postMessage({
      kind: "hello",
      from: this.#id,
      version: VERSION,
    } satisfies TabMessage);
  }

  #fail(thrown: unknown): void {
    this.#dismissGiveUp();
    post({ kind: "failed", error: toFault(thrown) });
  }

  #opened(): void {
    this.#dismissGiveUp();
    const leader = this.#host !== undefined;
    post(this.#isOpen ? { kind: "role", leader } : { kind: "opened", leader });
    this.#isOpen = true;
  }

  #send(request: Request): void {
    const to = this.#leader ?? "";
    const message = { kind: "request", from: this.#id, to, request } as const;
    this.#toLeader.postMessage(message satisfies TabMessage);
  }

  /** What was sent to a leader that is gone goes to the next one. */
  #sendAgain(): void {
    for (const request of this.#pending.values()) {
      if (this.#isOpen) request.again = true;
      if (this.#host) void this.#serve(request);
      else this.#send(request);
    }
  }

  #answered(answer: Answer): void {
    if (this.#pending.delete(answer.number)) post({ kind: "answer", answer });
  }

  async #serve(request: Request): Promise<void> {
    const answer = await this.#host?.submit(this.#id, request);
    if (answer) this.#answered(answer);
  }

  #heard(message: TabMessage): void {
    if (this.#host) return;
    switch (message.kind) {
      case "welcome":
        if (this.#leader === message.leader) return;
        this.#joined = message.joined;
        this.#leader = message.leader;
        this.#sendAgain();
        this.#opened();
        break;
      case "leader":
        this.#hello();
        break;
      case "loading":
        if (this.#giveUp !== undefined && !this.#leads) this.#expectAnswer();
        break;
      case "refused":
        this.#fail(message.error);
        break;
      case "answer":
        this.#answered(message.answer);
        break;
      case "news":
        if (message.news.kind === "joined") this.#joined = message.news.options;
        else if (this.#isOpen) post({ kind: "news", news: message.news });
        break;
    }
  }

  /** Runs with the lock, for as long as this Worker has the database. */
  async #lead(): Promise<void> {
    // However long the module takes to come: nobody else has the database.
    this.#leads = true;
    this.#dismissGiveUp();
    const loading = () => this.#everybody.postMessage({ kind: "loading" } satisfies TabMessage);
    this.#toLeader.onmessage = loading;
    const signs = setInterval(loading, WELCOME_MAX_MS / 3);
    try {
      await inspect(this.name);
      const module = await load(this.wasm);
      await untilReleased(() => module.poolInstall(directory(this.name)));
      const tell = (news: News) => this.#tell(news);
      const gone = (error: Fault) => crashed(error, this.#host?.joined ?? this.#joined);
      this.#host = new Host(module, DATABASE, false, this.#id, tell, gone);
    } catch (error) {
      this.#fail(error);
      return;
    } finally {
      clearInterval(signs);
    }
    this.#leader = this.#id;
    void this.#forgetTheDead();
    this.#toLeader.onmessage = ({ data }) => void this.#asked(data);
    this.#sendAgain();
    this.#everybody.postMessage({ kind: "leader", leader: this.#id } satisfies TabMessage);
    this.#opened();
    if (this.#joined) setTimeout(() => this.#rejoin(), REJOIN_AFTER_MS);
    await new Promise<void>((release) => (this.#release = release));
  }

  /** Unless somebody has left, or joined, meanwhile. */
  #rejoin(): void {
    const options = this.#joined;
    if (!options || this.#host?.joined) return;
    const request = { number: -1, oldest: -1, call: "join", args: [options] };
    void this.#host?.submit(this.#id, request);
  }

  async #forgetTheDead(): Promise<void> {
    const { held = [] } = await navigator.locks.query();
    const prefix = this.#lockOf("");
    const alive = held.flatMap(({ name }) =>
      name?.startsWith(prefix) ? [name.slice(prefix.length)] : [],
    );
    this.#host?.keepOnly(alive);
  }

  #tell(news: News): void {
    this.#everybody.postMessage({ kind: "news", news } satisfies TabMessage);
    if (news.kind === "joined") this.#joined = news.options;
    if (news.kind !== "joined") post({ kind: "news", news });
  }

  /** As the leader. */
  async #asked(message: TabMessage): Promise<void> {
    const host = this.#host;
    if (!host) return;
    switch (message.kind) {
      case "hello": {
        const client = this.#client(message.from);
        if (message.version !== VERSION) {
          const error = toFault(
            fault(
              "version_mismatch",
              `another tab has this database open with version ${VERSION} of wavesync, this one has ` +
                message.version,
              "reload all tabs of this site, so that they load the same version",
            ),
          );
          client.postMessage({ kind: "refused", error } satisfies TabMessage);
          return;
        }
        // Also before this tab has joined again.
        const welcome = { kind: "welcome", leader: this.#id, joined: this.#joined } as const;
        client.postMessage(welcome satisfies TabMessage);
        break;
      }
      case "request": {
        // Sent to the leader before: it comes again after the welcome.
        if (message.to !== this.#id) return;
        const client = this.#client(message.from);
        const answer = await host.submit(message.from, message.request);
        client.postMessage({ kind: "answer", answer } satisfies TabMessage);
        break;
      }
      case "bye":
        this.#gone(message.from);
        break;
    }
  }

  #client(id: string): BroadcastChannel {
    let channel = this.#clients.get(id);
    if (!channel) {
      channel = new BroadcastChannel(this.#lockOf(id));
      this.#clients.set(id, channel);
      // Granted when that tab has ended.
      void navigator.locks.request(this.#lockOf(id), { mode: "shared" }, () => this.#gone(id));
    }
    return channel;
  }

  #gone(id: string): void {
    this.#clients.get(id)?.close();
    this.#clients.delete(id);
    this.#host?.gone(id);
  }
}

/** The browser releases the files of a tab that has ended a moment after its locks. */
async function untilReleased(install: () => Promise<void>): Promise<void> {
  const deadline = performance.now() + RELEASE_MAX_MS;
  for (;;) {
    try {
      return await install();
    } catch (error) {
      if (toFault(error).code !== "in_use" || performance.now() > deadline) throw error;
      await new Promise((again) => setTimeout(again, 10));
    }
  }
}

/** A database in memory is this tab's own. */
async function openInMemory(name: string, wasm: string | undefined) {
  const module = await load(wasm);
  const tell = (news: News) => {
    if (news.kind !== "joined") post({ kind: "news", news });
  };
  const path = `/${encodeURIComponent(name)}`;
  const host = new Host(module, path, true, "", tell, (error) => crashed(error, null));
  post({ kind: "opened", leader: true });
  return {
    request: (request: Request) =>
      void host.submit("", request).then((answer) => post({ kind: "answer", answer })),
    break: (error: Fault) => host.break(error),
    close: () => host.close().then(() => post({ kind: "closed" })),
  };
}

watchQuota();

let tab:
  | { request(request: Request): void; break(error: Fault): void; close(): Promise<void> }
  | undefined;

/** Of what runs on the event loop: the engine, timers. */
function failed(event: Event, thrown: unknown): void {
  const crash = crashOf(thrown);
  if (!crash) return;
  event.preventDefault();
  tab?.break(crash);
}
addEventListener("error", (event) => failed(event, event.error));
addEventListener("unhandledrejection", (event) => failed(event, event.reason));

page.onmessage = async ({ data }: MessageEvent<ToWorker>) => {
  try {
    if (data.kind === "request") tab?.request(data.request);
    else if (data.kind === "close") await tab?.close();
    else if (data.memory) tab = await openInMemory(data.name, data.wasm);
    else {
      if (!globalThis.isSecureContext) await inspect(data.name);
      const opening = new Tab(data.name, data.wasm, data.joined ?? null);
      tab = opening;
      await opening.open();
    }
  } catch (error) {
    post({ kind: "failed", error: toFault(error) });
  }
};
