// What `format` means, as patterns: each a part of what the standards allow that no validator refuses.

const octet = "(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)";
const ipv4 = `${octet}(?:\\.${octet}){3}`;
const group = "[0-9a-fA-F]{1,4}";
const groups = (least: number, most: number) => (most === 0 ? "" : `${group}(?::${group}){${least - 1},${most - 1}}`);
const ipv6 = [
  groups(8, 8),
  ...Array.from({ length: 7 }, (_, n) => `${groups(n, n)}::${n === 6 ? "" : `(?:${groups(1, 6 - n)})?`}`),
].join("|");

const leap = "(?:\\d\\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)";
const date =
  "(?:\\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\\d|30)|02-(?:0[1-9]|1\\d|2[0-8]))|" +
  `${leap}-02-29)`;
const time = "(?:[01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(?:\\.\\d{1,9})?(?:Z|[+-](?:[01]\\d|2[0-3]):[0-5]\\d)"; // RFC 3339

const label = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?";
const hostname = `${label}(?:\\.${label}){0,2}`; // 253 characters at most
const escaped = "%[0-9A-F]{2}";
const path = `(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|${escaped})*)*`;
const query = `(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|${escaped})*`;

const pointer = "(?:/(?:[^~/]|~[01])*)*";
const reference = `^[a-z][a-z0-9+.-]{0,15}://${hostname}(?::\\d{1,5})?${path}(?:\\?${query})?(?:#${query})?$`;
const url = "^https?://[a-z0-9]{1,40}(?:\\.[a-z0-9]{1,40}){0,2}\\.[a-z]{2,10}(?::\\d{2,5})?(?:/[A-Za-z0-9._~/-]*)?$";
const email = `^[A-Za-z0-9_+-]{1,32}(?:\\.[A-Za-z0-9_+-]{1,16}){0,2}@${label}(?:\\.${label}){1,3}$`;

/** Of whole numbers, as OpenAPI names them: the least and the most. 2^63 − 1 and 2^64 − 1 are no doubles; the next are 2^63 and 2^64. */
export const integers: ReadonlyMap<string, readonly [number, number]> = new Map([
  ...[8, 16, 32].flatMap((bits): [string, [number, number]][] => [
    [`int${bits}`, [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1]],
    [`uint${bits}`, [0, 2 ** bits - 1]],
  ]),
  ["int64", [-(2 ** 63), 2 ** 63]],
  ["uint64", [0, 2 ** 64]],
]);

/** Of texts, by name. */
export const formats: ReadonlyMap<string, string> = new Map([
  ["date", `^${date}$`],
  ["time", `^${time}$`],
  ["iso-time", `^${time}$`],
  ["date-time", `^${date}T${time}$`],
  ["iso-date-time", `^${date}T${time}$`],
  [
    "duration",
    "^P(?:\\d{1,9}W|(?:\\d{1,9}Y(?:\\d{1,9}M(?:\\d{1,9}D)?)?|\\d{1,9}M(?:\\d{1,9}D)?|\\d{1,9}D)(?:T(?:\\d{1,9}H(?:\\d{1,9}M(?:\\d{1,9}S)?)?|" +
      "\\d{1,9}M(?:\\d{1,9}S)?|\\d{1,9}S))?|T(?:\\d{1,9}H(?:\\d{1,9}M(?:\\d{1,9}S)?)?|\\d{1,9}M(?:\\d{1,9}S)?|\\d{1,9}S))$",
  ],
  ["email", email],
  ["idn-email", email],
  ["hostname", `^${hostname}$`],
  ["idn-hostname", `^${hostname}$`],
  ["ipv4", `^${ipv4}$`],
  ["ipv6", `^(?:${ipv6})$`],
  ["uuid", "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"],
  ...["uri", "uri-reference", "iri", "iri-reference"].map((name): [string, string] => [name, reference]),
  ...["url", "uri-template"].map((name): [string, string] => [name, url]),
  ["json-pointer", `^${pointer}$`],
  ["relative-json-pointer", `^(?:0|[1-9]\\d{0,8})(?:#|${pointer})$`],
  ["byte", "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"],
]);
