//! Prints where the content of a file can be read.

import { once } from "node:events";
import { connect } from "node:net";
import { resolve } from "node:path";
import { createInterface } from "node:readline";

const file = process.argv[2];
const socket = connect(process.env.WAVESYNC_TABS);
socket.write(`${JSON.stringify({ call: "snapshot", file: resolve(file) })}\n`);
const [line] = await once(createInterface(socket), "line");
socket.end();
const { result, error } = JSON.parse(line);
if (error) throw new Error(error);
console.log(result ?? file);
