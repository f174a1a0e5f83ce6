// A page that passes calls to its Worker. What a test wants to know of it is on `window`.

const worker = new Worker("worker.js", { type: "module" });
const waiting = new Map();
let next = 0;
window.changes = [];
window.snapshots = [];

worker.onmessage = ({ data }) => {
  if (data.change) window.changes.push(data.change);
  else if (data.snapshot) window.snapshots.push(data.snapshot);
  else {
    const { resolve, reject } = waiting.get(data.number);
    waiting.delete(data.number);
    if (data.error) reject(Object.assign(new Error(data.error.message), data.error));
    else resolve(data.result);
  }
};
worker.onerror = (event) => console.error("worker:", event.message, event.filename, event.lineno);

/** Calls a function of the Worker. */
window.call = (name, ...parameters) =>
  new Promise((resolve, reject) => {
    waiting.set(++next, { resolve, reject });
    worker.postMessage({ number: next, name, parameters });
  });

/** As `call`; an error is a value with `code`. */
window.attempt = (name, ...parameters) =>
  window.call(name, ...parameters).then(
    (result) => ({ result }),
    (error) => ({ code: error.code, message: error.message, hint: error.hint }),
  );

/**
 * Asks again and again until `stop` is set; gives how long the answers took, in milliseconds, and
 * how much later than asked for this page, which does nothing else, was woken meanwhile.
 */
window.probe = async (sql) => {
  const [times, late] = [[], []];
  window.stop = false;
  while (!window.stop) {
    const begun = performance.now();
    await window.call("query", sql);
    const answered = performance.now();
    times.push(answered - begun);
    await new Promise((done) => setTimeout(done, 5));
    late.push(performance.now() - answered - 5);
  }
  return { times, late };
};
