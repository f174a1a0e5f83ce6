//! SQL text into statements, by the rules of sqlite3_complete(): <https://sqlite.org/c3ref/complete.html>.

const QUOTES = { "'": "'", '"': '"', "`": "`", "[": "]" };
const TRIGGER = /^\s*(EXPLAIN\s+)?CREATE\s+(TEMP\s+|TEMPORARY\s+)?TRIGGER\b/i;

/** Statements, each with its semicolon, and what stands behind the last one. */
function parts(text) {
  const whole = [];
  let start = 0;
  for (let at = 0; at < text.length; at++) {
    const char = text[at];
    const skip = (end, from = at + 1) => {
      const found = text.indexOf(end, from);
      at = found < 0 ? text.length : found + end.length - 1;
    };
    if (QUOTES[char]) skip(QUOTES[char]);
    else if (text.startsWith("--", at)) skip("\n");
    else if (text.startsWith("/*", at)) skip("*/", at + 2);
    else if (char === ";") {
      const statement = text.slice(start, at + 1);
      // The body of a trigger has semicolons; it ends with `; END;`.
      if (TRIGGER.test(statement) && !/;\s*END\s*;$/i.test(statement)) continue;
      whole.push(statement);
      start = at + 1;
    }
  }
  return { whole, rest: text.slice(start) };
}

/** Whether the text ends after a statement. */
export function isComplete(text) {
  return blank(parts(text).rest);
}

/** The statements of a complete text. */
export function split(text) {
  return parts(text).whole.filter((statement) => !blank(statement.slice(0, -1)));
}

/** Nothing but space and comments. */
function blank(text) {
  return /^(\s|--[^\n]*(\n|$)|\/\*[^]*?\*\/)*$/.test(text);
}
