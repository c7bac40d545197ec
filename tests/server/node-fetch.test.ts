import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, describe, expect, it } from "vitest";
import { Refusal } from "../../src/server/errors.ts";
import { type FetchOptions, isPublic, mediaFetcher } from "../../src/server/node-fetch.ts";

const servers: ReturnType<typeof createServer>[] = [];
afterAll(() => {
  for (const server of servers) {
    server.closeAllConnections();
    server.close();
  }
});

/** A host on this machine; counts what reaches it. */
async function host(answer: RequestListener) {
  const state = { port: 0, reached: 0 };
  const server = createServer((request, response) => {
    state.reached++;
    answer(request, response);
  });
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  state.port = (server.address() as AddressInfo).port;
  return state;
}

const never = new AbortController().signal;
const here = async () => [{ address: "127.0.0.1", family: 4 }];
/** As `serve` has it, but that tests speak plain http, to a host on this machine. */
const fetcher = (options: Partial<FetchOptions> = {}) =>
  mediaFetcher({ hosts: ["*"], allowHttp: true, resolve: here, ...options });
const local = { allowPrivate: true };

describe("fetching", () => {
  it("gives the bytes of a file", async () => {
    const { port } = await host((_, response) => response.end(Buffer.from([1, 2, 3])));
    expect(await fetcher(local)(`http://images.example:${port}/a.png`, never)).toEqual(Uint8Array.of(1, 2, 3));
  });

  it("goes to allowed hosts only", async () => {
    const site = await host((_, response) => response.end("x"));
    const fetch = fetcher({ ...local, hosts: ["good.example", "*.cdn.example"] });
    const at = (name: string) => fetch(`http://${name}:${site.port}/`, never);
    await at("good.example");
    await at("a.cdn.example");
    for (const name of ["evil.example", "good.example.evil.example", "xgood.example", "cdn.example", "xcdn.example"])
      await expect(at(name)).rejects.toThrow("may not fetch from its host");
    expect(site.reached).toBe(2);
  });

  it.each([
    "http://127.0.0.1/",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f.1/",
    "http://0177.0.0.1/",
    "http://0/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[fe80::1]/",
    "http://[fd00::1]/",
    "http://10.0.0.1/",
    "http://192.168.1.1/",
    "http://172.31.255.255/",
    "http://169.254.169.254/latest/meta-data/",
    "http://100.100.100.200/",
    "http://localhost/",
    "http://images.example/",
  ])("refuses %s, which means a private address", async (url) => {
    const site = await host((_, response) => response.end("x"));
    const at = url.replace(/^(http:\/\/[^/]*)/, `$1:${site.port}`);
    await expect(fetcher()(at, never)).rejects.toThrow("is not on the public internet");
    expect(site.reached).toBe(0);
  });

  it("refuses a name of which one address is private", async () => {
    const both = async () => [{ address: "93.184.215.14", family: 4 }, ...(await here())];
    await expect(fetcher({ resolve: both })("http://images.example/", never)).rejects.toThrow("public internet");
  });

  it("asks for a host's address once, and connects to that: a second answer changes nothing", async () => {
    const site = await host((_, response) => response.end("x"));
    let asked = 0;
    const rebinding = async () => {
      asked++;
      return asked === 1 ? [{ address: "127.0.0.1", family: 4 }] : [{ address: "127.0.0.9", family: 4 }];
    };
    await fetcher({ ...local, resolve: rebinding })(`http://images.example:${site.port}/`, never);
    expect([asked, site.reached]).toEqual([1, 1]);
  });

  it("checks where a redirect leads: its protocol, its host and its address", async () => {
    const inner = await host((_, response) => response.end("secret"));
    let location = "";
    const outer = await host((_, response) => response.writeHead(302, { location }).end());
    const resolve = async (name: string) => (name === "outer.example" ? here() : [{ address: "10.0.0.1", family: 4 }]);
    const fetch = mediaFetcher({
      hosts: ["outer.example", "inner.example"],
      allowHttp: true,
      allowPrivate: true,
      resolve,
    });
    const strict = mediaFetcher({ hosts: ["*"], resolve, allowHttp: true });
    const from = `http://outer.example:${outer.port}/`;
    for (const [to, why] of [
      ["file:///etc/passwd", "is not https"],
      ["ftp://inner.example/", "is not https"],
      [`http://other.example:${inner.port}/`, "may not fetch from its host"],
      ["http://user:password@inner.example/", "user's name or password"],
    ] as const) {
      location = to;
      await expect(fetch(from, never)).rejects.toThrow(why);
    }
    await expect(strict(`http://inner.example:${inner.port}/`, never)).rejects.toThrow("public internet");
    expect(inner.reached).toBe(0);
    location = from;
    await expect(fetch(from, never)).rejects.toThrow("more than 3 redirects");
  });

  it("checks the address again behind a redirect", async () => {
    const inner = await host((_, response) => response.end("secret"));
    const asked: string[] = [];
    const resolve = async (name: string) => {
      asked.push(name);
      return here();
    };
    await expect(fetcher({ resolve })(`http://inner.example:${inner.port}/`, never)).rejects.toThrow("public internet");
    const outer = await host((_, response) =>
      response.writeHead(307, { location: `http://inner.example:${inner.port}/` }).end(),
    );
    await fetcher({ ...local, resolve })(`http://outer.example:${outer.port}/`, never);
    expect(asked).toEqual(["inner.example", "outer.example", "inner.example"]);
  });

  it("takes https alone unless told otherwise", async () => {
    const fetch = mediaFetcher({ hosts: ["*"] });
    for (const url of ["http://images.example/", "ftp://images.example/", "file:///etc/passwd", "gopher://x/"])
      await expect(fetch(url, never)).rejects.toThrow("is not https");
  });

  it("says what it holds as it comes, and stops where there is no room", async () => {
    let isClosed = false;
    const endless = await host((_, response) => {
      const timer = setInterval(() => response.write("x".repeat(1000)), 1);
      response.on("close", () => {
        isClosed = true;
        clearInterval(timer);
      });
    });
    let held = 0;
    const take = (bytes: number) => {
      if (held + bytes > 5000) throw new Refusal(429, "no room");
      held += bytes;
    };
    const asked = fetcher({ ...local, mostBytes: 1e9 })(`http://images.example:${endless.port}/`, never, take);
    await expect(asked).rejects.toThrow("no room");
    expect(held).toBeGreaterThan(0);
    await expect.poll(() => isClosed).toBe(true);
  });

  it("gives up what is too large, announced or not, and what takes too long", async () => {
    const announced = await host((_, response) =>
      response.writeHead(200, { "content-length": "9999" }).end("x".repeat(9999)),
    );
    const endless = await host((_, response) => {
      const timer = setInterval(() => response.write("x".repeat(1000)), 1);
      response.on("close", () => clearInterval(timer));
    });
    const silent = await host(() => {});
    const at = ({ port }: { port: number }, options: Partial<FetchOptions>) =>
      fetcher({ ...local, ...options })(`http://images.example:${port}/`, never);
    await expect(at(announced, { mostBytes: 5000 })).rejects.toThrow("larger than 5,000 bytes");
    await expect(at(endless, { mostBytes: 5000 })).rejects.toThrow("larger than 5,000 bytes");
    await expect(at(silent, { timeoutMs: 50 })).rejects.toThrow("longer than 0.05 seconds");
    const nameless = { timeoutMs: 50, resolve: () => new Promise<never>(() => {}) };
    await expect(at(silent, nameless)).rejects.toThrow("longer than 0.05 seconds");
    await expect(at(endless, { timeoutMs: 50, mostBytes: 1e9 })).rejects.toThrow("longer than 0.05 seconds");
  });

  it("tells nothing of what the network answers", async () => {
    const missing = await host((_, response) => response.writeHead(500, { "x-secret": "1" }).end("secret"));
    await expect(fetcher(local)(`http://images.example:${missing.port}/`, never)).rejects.toThrow(
      /^A file could not be fetched: its host answers that it is not there\.$/,
    );
    await expect(fetcher(local)("http://images.example:1/", never)).rejects.toThrow(
      /^A file could not be fetched: its host cannot be reached\.$/,
    );
  });

  it("ends with the request", async () => {
    const silent = await host(() => {});
    const cancel = new AbortController();
    const fetching = fetcher(local)(`http://images.example:${silent.port}/`, cancel.signal);
    setTimeout(() => cancel.abort(new Error("left")), 20);
    await expect(fetching).rejects.toThrow("left");
  });
});

it.each([
  ["93.184.215.14", true],
  ["8.8.8.8", true],
  ["2606:2800:21f:cb07:6820:80da:af6b:8b2c", true],
  ["172.32.0.1", true],
  ["100.128.0.1", true],
  ["2001:db8::1", false],
  ["2002:7f00:1::", false],
  ["2001:0:7f00:1::", false],
  ["ff02::1", false],
  ["::", false],
  ["255.255.255.255", false],
  ["224.0.0.1", false],
  ["", false],
  ["localhost", false],
])("%s is public: %s", (address, expected) => {
  expect(isPublic(address)).toBe(expected);
});
