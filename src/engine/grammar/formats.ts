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
  "(?!0000)(?:\\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\\d|30)|02-(?:0[1-9]|1\\d|2[0-8]))|" +
  `${leap}-02-29)`;
const time = "(?:[01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(?:\\.\\d{1,9})?(?:Z|[+-](?:[01]\\d|2[0-3]):[0-5]\\d)"; // RFC 3339

const label = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?";
const hostname = `${label}(?:\\.${label}){0,2}`; // 253 characters at most
const escaped = "%[0-9A-F]{2}";
const path = `(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|${escaped})*)*`;
const query = `(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|${escaped})*`;

// What `new URL` reads, too: it takes a last label of digits for an address, and looks into those that begin with xn--.
const host = `(?:(?:[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?\\.){0,5}[a-z][a-z0-9]{0,30}|${ipv4})`;
const port = "(?::(?:[1-9]\\d{0,3}|[1-5]\\d{4}))?";

const pointer = "(?:/(?:[^~/]|~[01])*)*";
const reference = `^(?!.*xn--)[a-z][a-z0-9+.-]{0,15}://${host}${port}${path}(?:\\?${query})?(?:#${query})?$`;
const url =
  "^https?://[a-z0-9]{1,40}(?:\\.[a-z0-9]{1,40}){0,2}\\.[a-z]{2,10}(?::[1-9]\\d{1,3})?(?:/[A-Za-z0-9._~/-]*)?$";
const email = `^[A-Za-z0-9_+-]{1,32}(?:\\.[A-Za-z0-9_+-]{1,16}){0,2}@${label}(?:\\.${label}){1,3}$`;

const hex = (count: number) => `[0-9a-fA-F]{${count}}`;
const base64 = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$";
const base64url = "(?:[A-Za-z0-9_-]{4})"; // a multiple of four, since some have no padding and some need it
const network = `(?:${octet}(?:\\.0){3}/8|${octet}\\.${octet}(?:\\.0){2}/16|(?:${octet}\\.){3}0/24|${ipv4}/32)`;
// {"alg":"HS256","typ":"JWT"}, or RS256, ES256
const jwt = `^eyJhbGciOiJ(?:IUzI1NiIs|SUzI1NiIs|FUzI1NiIs)InR5cCI6IkpXVCJ9\\.${base64url}+\\.${base64url}+$`;

/** Of whole numbers, as OpenAPI names them: the least, and the first that is too large, since 2^63 − 1 and 2^64 − 1 are no doubles. */
export const integers: ReadonlyMap<string, readonly [number, number]> = new Map(
  [8, 16, 32, 64].flatMap((bits): [string, [number, number]][] => [
    [`int${bits}`, [-(2 ** (bits - 1)), 2 ** (bits - 1)]],
    [`uint${bits}`, [0, 2 ** bits]],
  ]),
);

/** Of texts, by name. */
export const formats: ReadonlyMap<string, string> = new Map([
  ["date", `^${date}$`],
  ["time", `^${time}$`],
  ["iso-time", `^${time}$`],
  ["date-time", `^${date}T${time}$`],
  ["iso-date-time", `^${date}T${time}$`],
  [
    "duration",
    "^P(?:\\d{1,6}W|(?:\\d{1,6}Y(?:\\d{1,6}M(?:\\d{1,6}D)?)?|\\d{1,6}M(?:\\d{1,6}D)?|\\d{1,6}D)(?:T(?:\\d{1,6}H(?:\\d{1,6}M(?:\\d{1,6}S)?)?|" +
      "\\d{1,6}M(?:\\d{1,6}S)?|\\d{1,6}S))?|T(?:\\d{1,6}H(?:\\d{1,6}M(?:\\d{1,6}S)?)?|\\d{1,6}M(?:\\d{1,6}S)?|\\d{1,6}S))$",
  ],
  ["email", email],
  ["idn-email", email],
  ["name-email", email],
  ["hostname", `^${hostname}$`],
  ["idn-hostname", `^${hostname}$`],
  ["ipv4", `^${ipv4}$`],
  ["ipv6", `^(?:${ipv6})$`],
  ["uuid", `^${hex(8)}-${hex(4)}-${hex(4)}-${hex(4)}-${hex(12)}$`],
  ...Array.from({ length: 8 }, (_, i): [string, string] => [
    `uuid${i + 1}`,
    `^${hex(8)}-${hex(4)}-${i + 1}${hex(3)}-[89abAB]${hex(3)}-${hex(12)}$`,
  ]),
  ["ipv4network", `^${network}$`],
  ["ipv6network", `^(?:${ipv6})/128$`],
  ["ipv4interface", `^${ipv4}/(?:[12]?\\d|3[0-2])$`],
  ["ipv6interface", `^(?:${ipv6})/\\d\\d$`],
  ["ipvanyaddress", `^${ipv4}$|^(?:${ipv6})$`],
  ["ipvanynetwork", `^${network}$|^(?:${ipv6})/128$`],
  ["ipvanyinterface", `^${ipv4}/(?:[12]?\\d|3[0-2])$|^(?:${ipv6})/\\d\\d$`],
  ["jwt", jwt],
  ...["uri", "uri-reference", "iri", "iri-reference", "multi-host-uri"].map((name): [string, string] => [
    name,
    reference,
  ]),
  ...["url", "uri-template"].map((name): [string, string] => [name, url]),
  ["json-pointer", `^${pointer}$`],
  ["relative-json-pointer", `^(?:0|[1-9]\\d{0,8})(?:#|${pointer})$`],
  ["byte", base64],
  ["base64", base64],
  ["base64url", `^${base64url}*$`],
]);
