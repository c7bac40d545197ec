// Whole numbers of a body that no double is, and numbers beyond all doubles: JSON.parse rounds them, to Infinity the latter,
// and a schema would hold a reply to another number.

import { Refusal } from "./errors.ts";

/** Whole numbers of so many digits are below 2^53. */
export const EXACT_DIGITS = 15;

/** Fields that hold a JSON schema, whatever API they are of. */
const SCHEMAS = new Set(["parameters", "input_schema", "schema"]);

/** Refuses numbers that were rounded so, in the schemas of a body. It has been parsed: it is JSON. */
export function checkExact(text: string): void {
  const path: (string | number)[] = [];
  let name = "";
  for (let at = 0; at < text.length; ) {
    const c = text[at]!;
    if (c === '"') {
      const end = endOfString(text, at);
      name = text.slice(at + 1, Math.min(end, at + 201)); // of a property, if a colon follows
      at = end + 1;
    } else if (c === "-" || (c >= "0" && c <= "9")) {
      NUMBER.lastIndex = at;
      const [number] = NUMBER.exec(text)!;
      if (isRounded(number) && path.some((step) => SCHEMAS.has(step as string))) throw rounded(number, path);
      at += number.length;
    } else {
      if (c === "{" || c === "[") path.push(c === "[" ? 0 : "");
      else if (c === "}" || c === "]") path.pop();
      else if (c === ":") path[path.length - 1] = name;
      else if (c === "," && typeof path.at(-1) === "number") (path[path.length - 1] as number)++;
      at++;
    }
  }
}

const NUMBER = /-?[\d.eE+-]+/y;

/** Where a string's closing quote is. */
function endOfString(text: string, from: number): number {
  for (let end = text.indexOf('"', from + 1); ; end = text.indexOf('"', end + 1)) {
    let before = end;
    while (text[before - 1] === "\\") before--;
    if ((end - before) % 2 === 0) return end;
  }
}

function isRounded(number: string): boolean {
  const double = Number(number);
  if (!Number.isFinite(double)) return true;
  // finite ones have few digits: BigInt is quadratic in them
  return number.length > EXACT_DIGITS && /^-?\d+$/.test(number) && BigInt(number) !== BigInt(double);
}

function rounded(number: string, path: readonly (string | number)[]): Refusal {
  const param = path.reduce<string>(
    (text, step) => (typeof step === "number" ? `${text}[${step}]` : text === "" ? step : `${text}.${step}`),
    "",
  );
  const double = Number(number);
  const shown = number.length > 40 ? `${number.slice(0, 40)}…` : number;
  return new Refusal(
    400,
    `Invalid value for '${param}': ${shown} is no number that is held exactly (the nearest is ${Number.isFinite(double) ? BigInt(double) : double}); expected one up to 2^53, or a "string" with a "pattern".`,
    { param, code: "invalid_value" },
  );
}
