// Fetches images and videos that requests name by URL, from hosts that were allowed and from no private address.

import { lookup } from "node:dns/promises";
import { type ClientRequest, request as httpRequest, type IncomingMessage } from "node:http";
import { request as httpsRequest } from "node:https";
import { BlockList, isIP, type LookupFunction } from "node:net";
import { Refusal } from "./errors.ts";
import type { FetchMedia } from "./urls.ts";

export interface FetchOptions {
  /** Names of hosts: "example.com", "*.example.com" for those below it, "*" for all. */
  readonly hosts: readonly string[];
  /** Addresses of private networks and of this machine too. */
  readonly allowPrivate?: boolean | undefined;
  /** Plain http too. */
  readonly allowHttp?: boolean | undefined;
  readonly mostBytes?: number | undefined;
  /** For the whole file, redirects included. */
  readonly timeoutMs?: number | undefined;
  readonly redirects?: number | undefined;
  /** Addresses of a host; default: the system's answer. */
  readonly resolve?:
    | ((host: string) => Promise<readonly { readonly address: string; readonly family: number }[]>)
    | undefined;
}

/** A fetcher for `createHandler`. Every address is checked when it is connected to, behind every redirect anew. */
export function mediaFetcher(options: FetchOptions): FetchMedia {
  const { mostBytes = 20e6, timeoutMs = 10_000, redirects = 3 } = options;
  return async (given, signal, take) => {
    const late = AbortSignal.timeout(timeoutMs);
    const stop = new AbortController();
    const abort = () => stop.abort();
    for (const cause of [late, signal]) cause.addEventListener("abort", abort);
    try {
      if (signal.aborted) abort();
      let url = checked(given, options);
      for (let hops = 0; hops <= redirects; hops++) {
        const response = await opened(url, options, stop.signal);
        const { statusCode = 0, headers } = response;
        if (statusCode >= 300 && statusCode < 400 && headers.location !== undefined) {
          response.destroy();
          url = checked(headers.location, options, url);
          continue;
        }
        if (statusCode !== 200) {
          response.destroy();
          throw refused("its host answers that it is not there");
        }
        return await read(response, mostBytes, take);
      }
      throw refused(`it is behind more than ${redirects} redirects`);
    } catch (error) {
      if (late.aborted) throw refused(`it took longer than ${timeoutMs / 1000} seconds`);
      signal.throwIfAborted();
      throw error instanceof Refusal ? error : refused("its host cannot be reached");
    } finally {
      for (const cause of [late, signal]) cause.removeEventListener("abort", abort);
    }
  };
}

/** Nothing of the network's answer is in it: a client must not learn from it what is in there. */
const refused = (why: string) =>
  new Refusal(400, `A file could not be fetched: ${why}.`, { code: "invalid_image_url" });

function checked(text: string, { hosts, allowHttp = false }: FetchOptions, base?: URL): URL {
  let url: URL;
  try {
    url = new URL(text, base);
  } catch {
    throw refused("its URL is none");
  }
  const { protocol, hostname, username, password } = url;
  if (protocol !== "https:" && !(allowHttp && protocol === "http:")) throw refused("its URL is not https");
  if (username !== "" || password !== "") throw refused("its URL has a user's name or password in it");
  const allowed = hosts.some(
    (host) => host === "*" || host === hostname || (host.startsWith("*.") && hostname.endsWith(host.slice(1))),
  );
  if (!allowed) throw refused("this server may not fetch from its host");
  return url;
}

async function opened(url: URL, options: FetchOptions, signal: AbortSignal): Promise<IncomingMessage> {
  const { hostname, protocol } = url;
  const { allowPrivate = false, resolve = (host: string) => lookup(host, { all: true }) } = options;
  const host = hostname.replace(/^\[(.*)\]$/, "$1");
  const found = isIP(host) ? [{ address: host, family: isIP(host) }] : await unless(signal, resolve(host));
  const { address, family } = found[0] ?? { address: "", family: 0 };
  // All of them: a name that means this network too is not a host of the internet.
  if (!allowPrivate && !(found.length > 0 && found.every(({ address }) => isPublic(address))))
    throw refused("its host is not on the public internet");
  // What was checked is what is connected to: no second question, whose answer could be another.
  const pinned: LookupFunction = (_, { all }, callback) =>
    all ? callback(null, [{ address, family }]) : callback(null, address, family);
  const request = protocol === "https:" ? httpsRequest : httpRequest;
  return new Promise((resolve, reject) => {
    const headers = { accept: "image/*, video/*", "user-agent": "llama4.ts" };
    const sent: ClientRequest = request(url, { agent: false, lookup: pinned, signal, headers, maxHeaderSize: 16_384 });
    sent.on("response", resolve);
    sent.on("error", reject);
    sent.end();
  });
}

/** What comes of work that knows no signal, unless the signal comes first. */
function unless<T>(signal: AbortSignal, work: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    signal.addEventListener("abort", abort, { once: true });
    if (signal.aborted) abort();
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}

async function read(
  response: IncomingMessage,
  mostBytes: number,
  take: ((bytes: number) => void) | undefined,
): Promise<Uint8Array> {
  const tooLarge = () => refused(`it is larger than ${mostBytes.toLocaleString("en")} bytes`);
  const chunks: Buffer[] = [];
  let length = 0;
  try {
    if (Number(response.headers["content-length"] ?? 0) > mostBytes) throw tooLarge();
    for await (const chunk of response as AsyncIterable<Buffer>) {
      length += chunk.byteLength;
      if (length > mostBytes) throw tooLarge();
      take?.(chunk.byteLength);
      chunks.push(chunk);
    }
  } finally {
    response.destroy();
  }
  return new Uint8Array(Buffer.concat(chunks));
}

// IANA's registry of special-purpose addresses: what is not reachable from everywhere.
const special4 = new BlockList();
for (const range of [
  ...["0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"],
  ...["192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"],
  ...["224.0.0.0/4", "240.0.0.0/4"],
])
  special4.addSubnet(...split(range), "ipv4");
// Of IPv6 only global unicast, without what wraps IPv4 (6to4, Teredo) and what is for documentation.
const global6 = new BlockList();
global6.addSubnet("2000::", 3, "ipv6");
const special6 = new BlockList();
for (const range of ["2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"])
  special6.addSubnet(...split(range), "ipv6");

function split(range: string): [string, number] {
  const [net = "", bits] = range.split("/");
  return [net, Number(bits)];
}

/** Whether an address is one of the public internet. */
export function isPublic(address: string): boolean {
  if (isIP(address) === 4) return !special4.check(address, "ipv4");
  return isIP(address) === 6 && global6.check(address, "ipv6") && !special6.check(address, "ipv6");
}
