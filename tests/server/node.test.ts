// The handler on a port: what Node adds.

import { connect } from "node:net";
import { text } from "node:stream/consumers";
import { afterAll, describe, expect, it } from "vitest";
import { type Client, createHandler } from "../../src/server/handler.ts";
import { type Listening, type ListenOptions, listen } from "../../src/server/node.ts";
import { Scripted, user } from "./scripted.ts";

const servers: Listening[] = [];
afterAll(() => {
  for (const server of servers) {
    server.cut();
    server.drain();
  }
});

async function start(options: Partial<ListenOptions> = {}) {
  const clients: Client[] = [];
  const model = new Scripted({ lines: ["Hi"] });
  const answer = createHandler(model, { name: "m" });
  const handler: typeof answer = (request, client) => {
    clients.push(client!);
    return answer(request, client);
  };
  const server = await listen(handler, { host: "127.0.0.1", port: 0, ...options });
  servers.push(server);
  return { server, clients, model };
}

describe("listening", () => {
  it("answers on its port, and knows the client's address", async () => {
    const { server, clients } = await start();
    const response = await fetch(`${server.url}/v1/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ messages: [user("Hello")] }),
    });
    expect((await response.json()).choices[0].message.content).toBe("Hi");
    expect(clients).toEqual([{ address: "127.0.0.1" }]);
  });

  it("hands the page's files out before the handler is asked, and nothing else", async () => {
    const page = (request: Request) =>
      new URL(request.url).pathname === "/" ? new Response("<h1>Chat</h1>") : undefined;
    const { server, clients } = await start({ page });
    expect(await (await fetch(server.url)).text()).toBe("<h1>Chat</h1>");
    expect(clients).toEqual([]);
    expect((await fetch(`${server.url}/health`)).status).toBe(200);
    expect((await fetch(`${server.url}/../etc/passwd`)).status).toBe(404);
  });

  it("says so where the port is taken, or the address is not this machine's", async () => {
    const { server } = await start();
    const port = Number(new URL(server.url).port);
    await expect(start({ port })).rejects.toThrow(`127.0.0.1:${port}: another program listens there`);
    await expect(start({ host: "192.0.2.1" })).rejects.toThrow("this machine has no such address");
  });

  it("answers what is no HTTP with 400 and nothing of itself", async () => {
    const { server } = await start();
    for (const sent of ["nonsense\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"]) {
      const socket = connect(Number(new URL(server.url).port), "127.0.0.1");
      socket.end(sent);
      const answer = await text(socket);
      expect(answer).toMatch(/^HTTP\/1\.1 400 /);
      expect(answer).not.toMatch(/node_modules| at |Error:/);
    }
  });

  // 1,024 that said nothing, or sent a header slowly, kept everybody out for 20 seconds.
  it("cuts connections without a request where there are too many, those that were longest without one first", async () => {
    const { server, model } = await start({ mostConnections: 8 });
    const port = Number(new URL(server.url).port);
    const closed: string[] = [];
    const open = (name: string, sent = "") => {
      const socket = connect(port, "127.0.0.1", () => socket.write(sent)).resume();
      socket.on("error", () => {}).on("close", () => closed.push(name));
      return socket;
    };
    const get = "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n";
    model.script = { lines: ["a", { wait: new Promise(() => {}) }] };
    const body = JSON.stringify({ prompt: "x", stream: true });
    const head = `POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n`;
    const sockets = [open("reading a reply", head + body)];
    await expect.poll(() => model.asked.length).toBe(1);
    for (const name of ["silent", "slow", "answered"]) {
      const sent = { silent: "", slow: get, answered: `${get}\r\n` }[name];
      const socket = open(name, sent);
      sockets.push(socket);
      await new Promise((resolve) => socket.once(name === "answered" ? "data" : "connect", resolve));
    }
    for (let i = 0; i < 6; i++) {
      expect((await fetch(`${server.url}/health`, { headers: { connection: "close" } })).status).toBe(200);
      const socket = open(`later ${i}`);
      sockets.push(socket);
      await new Promise((resolve) => socket.once("connect", resolve));
    }
    await expect.poll(() => closed.length).toBeGreaterThan(1);
    expect(["silent", "slow", "answered", "later 0", "later 1", "later 2"].slice(0, closed.length)).toEqual(closed);
    for (const socket of sockets) socket.destroy();
  });

  describe("with readers of a large file", () => {
    const LARGE = 12e6; // more than the system takes for a reader that reads nothing
    const page = (request: Request) =>
      new URL(request.url).pathname === "/large" ? new Response(new Uint8Array(LARGE)) : undefined;
    const ask = (server: Listening, times = 1) => {
      const socket = connect(Number(new URL(server.url).port), "127.0.0.1");
      socket.on("error", () => {}).write("GET /large HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".repeat(times));
      return socket;
    };
    const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
    /** Bytes that still come, until the connection ends. */
    const rest = (socket: ReturnType<typeof ask>) =>
      new Promise<number>((resolve) => {
        let bytes = 0;
        socket.on("data", (piece) => {
          bytes += piece.length;
          if (bytes >= LARGE) socket.destroy();
        });
        socket.on("close", () => resolve(bytes));
      });

    // only streams had a time in which something has to be read
    it("cuts one that takes nothing, and none that takes little at a time", async () => {
      const { server } = await start({ page, idleMs: 400 });
      const [stalled, slow] = [ask(server, 2), ask(server)];
      let bytes = 0;
      slow.on("data", (piece) => {
        bytes += piece.length;
        if (bytes >= LARGE) slow.destroy();
        slow.pause();
        setTimeout(() => slow.resume(), 5);
      });
      const closed = new Promise((resolve) => slow.on("close", resolve));
      await wait(1500);
      expect(await rest(stalled)).toBeLessThan(LARGE);
      await closed;
      expect(bytes).toBeGreaterThanOrEqual(LARGE);
    });

    it("waits as long as it takes to compute an answer", async () => {
      const { server, model } = await start({ idleMs: 50 });
      model.script = { lines: ["a", { wait: wait(300) }, "b"] };
      const headers = { "content-type": "application/json" };
      const init = { method: "POST", headers, body: JSON.stringify({ prompt: "x" }) };
      const answer = await (await fetch(`${server.url}/v1/completions`, init)).json();
      expect(answer.choices[0].text).toBe("ab");
    });

    it("cuts those that take nothing for new connections, where there are too many", async () => {
      const { server } = await start({ page, idleMs: 60_000, mostConnections: 4 });
      const stalled = Array.from({ length: 4 }, () => ask(server, 2));
      await wait(2500); // they are looked at each second
      for (let i = 0; i < 3; i++) {
        const answer = await fetch(`${server.url}/health`, { headers: { connection: "close" } });
        expect(answer.status).toBe(200);
      }
      expect(await rest(stalled[0]!)).toBeLessThan(LARGE);
      for (const socket of stalled) socket.destroy();
    });
  });

  it("drains: what is being answered is answered, and then it is gone", async () => {
    const { server, model } = await start();
    let go = (_: unknown) => {};
    const wait = new Promise((resolve) => {
      go = resolve;
    });
    model.script = { lines: ["a", { wait }, "b"] };
    const asked = fetch(`${server.url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ prompt: "x" }),
    });
    await expect.poll(() => model.asked.length).toBe(1);
    const drained = server.drain();
    setTimeout(() => go(undefined), 20);
    expect((await (await asked).json()).choices[0].text).toBe("ab");
    await drained;
    await expect(fetch(server.url)).rejects.toThrow();
  });
});
