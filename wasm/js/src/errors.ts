//! Errors: a code for programs, a message and a hint for people. Between Worker and page they are
//! plain objects.

/** What went wrong, as a word that stays the same between versions. */
export type ErrorCode =
  | "sql"
  | "constraint"
  | "bad_parameter"
  | "use_transaction"
  | "read_only"
  | "busy"
  | "transaction_lost"
  | "transaction_timeout"
  | "transaction_over"
  | "result_lost"
  | "quota_exceeded"
  | "no_opfs"
  | "corrupt_pool"
  | "corrupt_database"
  | "not_a_database"
  | "io"
  | "in_use"
  | "version_mismatch"
  | "worker_blocked"
  | "worker_failed"
  | "wasm_blocked"
  | "wasm_failed"
  | "crashed"
  | "closed"
  | "bad_name"
  | "out_of_memory"
  | "interrupted"
  | "engine"
  | "no_relay"
  | "insecure_websocket"
  | "not_websocket"
  | "bad_address"
  | "bad_options"
  | "bad_topic"
  | "bad_argument"
  | "already_joined"
  | "not_joined"
  | "database";

/** The plain form in which errors travel. */
export interface Fault {
  code: ErrorCode;
  message: string;
  hint: string;
  sqlite?: number;
}

/** An error of this package. */
export class WavesyncError extends Error {
  /** A stable word. */
  readonly code: ErrorCode;
  /** What to do about it; may be empty. */
  readonly hint: string;
  /** SQLite's extended result code, or 0. */
  readonly sqlite: number;

  constructor(fault: Fault) {
    super(fault.message);
    this.name = "WavesyncError";
    this.code = fault.code;
    this.hint = fault.hint;
    this.sqlite = fault.sqlite ?? 0;
  }
}

export function fault(code: ErrorCode, message: string, hint = ""): WavesyncError {
  return new WavesyncError({ code, message, hint });
}

/** What is thrown by a module that has panicked or run out of its stack: nothing in it can be relied
 *  on any more. Null for anything else. */
export function crashOf(thrown: unknown): Fault | null {
  if (!(thrown instanceof WebAssembly.RuntimeError)) return null;
  const said = (globalThis as { wavesyncPanic?: string }).wavesyncPanic;
  return {
    code: "crashed",
    message: `wavesync has failed, and this is its fault: ${said ?? thrown.message}`,
    hint:
      "what was committed is safe; whether this call was done is not known, so look before you " +
      "repeat it; please report the message",
  };
}

/** Whatever was thrown, in the plain form. */
export function toFault(thrown: unknown): Fault {
  const error = thrown as Partial<Fault> | undefined;
  return {
    // The browser's own exceptions have a number there.
    code: typeof error?.code === "string" ? error.code : "engine",
    message: error?.message ?? String(thrown),
    hint: error?.hint ?? "",
    sqlite: error?.sqlite ?? 0,
  };
}
