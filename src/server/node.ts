// The handler on a port, by Node's HTTP server.

import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { getRequestListener } from "@hono/node-server";
import { RequestError } from "../tensor/errors.ts";
import { type Handler, LIMITS } from "./handler.ts";

export interface ListenOptions {
  readonly host: string;
  /** 0 takes any that is free. */
  readonly port: number;
  /** Answers what is not the handler's: the files of the page. */
  readonly page?: ((request: Request) => Response | undefined) | undefined;
  readonly mostConnections?: number | undefined;
  /** A reader that takes nothing of its answer for so long is cut. */
  readonly idleMs?: number | undefined;
}

/** A server that listens. */
export interface Listening {
  readonly url: string;
  /** Takes no new connections; resolves when the last request has its answer. */
  drain(): Promise<void>;
  /** Cuts what is still open. */
  cut(): void;
}

/** Resolves once it listens. Throws RequestError where it cannot. */
export async function listen(handler: Handler, options: ListenOptions): Promise<Listening> {
  const { host, port, page, mostConnections = 1024, idleMs = LIMITS.idleMs } = options;
  const listener = getRequestListener(
    (request, { incoming }) =>
      page?.(request) ?? handler(request, { address: (incoming as IncomingMessage).socket.remoteAddress }),
    { overrideGlobalObjects: false, errorHandler: () => new Response(null, { status: 400 }) }, // no Host, or a URL that is none
  );
  const server = createServer(
    {
      headersTimeout: 20_000,
      requestTimeout: 120_000, // to send the body
      keepAliveTimeout: 65_000, // longer than the minute that proxies keep connections
      connectionsCheckingInterval: 5000,
      maxHeaderSize: 16_384,
    },
    (incoming: IncomingMessage, outgoing: ServerResponse) => void listener(incoming, outgoing),
  );
  limitConnections(server, mostConnections, idleMs);
  await listening(server, host, port);
  const { address, family, port: bound } = server.address() as AddressInfo; // it is bound to a port, not to a path
  const name = host === "localhost" ? host : family === "IPv6" ? `[${address}]` : address;
  return {
    url: `http://${name}:${bound}`,
    drain: () => drained(server),
    cut: () => server.closeAllConnections(),
  };
}

/** What a connection does. */
interface Connection {
  /** That are being answered. */
  requests: number;
  /** Bytes that were written and have left; and how many of the last write wait. */
  left: number;
  waiting: number;
  /** Since when it has been without a request, or has taken nothing of what waits for it. */
  since: number;
}

/**
 * Cuts a connection that takes nothing for `idleMs` of what waits to be written to it. Where one connection more than so many
 * comes, the one is cut that has done nothing for longest: without a request, as it is silent, idle or sending its headers
 * slowly, or with an answer that it does not read. By turning away the new one, those would keep everybody out.
 */
function limitConnections(server: Server, most: number, idleMs: number): void {
  const connections = new Map<Socket, Connection>();
  const idle = new Set<Socket>(); // longest first
  const stalled = new Set<Socket>(); // likewise
  /** Whether bytes wait for it and none has left since it was last looked at. */
  const isStalled = (socket: Socket, connection: Connection): boolean => {
    const left = socket.bytesWritten - socket.writableLength;
    const waiting = waitingOf(socket);
    if (socket.writableLength > 0 && left === connection.left && waiting === connection.waiting) return true;
    Object.assign(connection, { left, waiting, since: performance.now() });
    stalled.delete(socket);
    return false;
  };
  const watch = setInterval(
    () => {
      for (const [socket, connection] of connections) {
        if (connection.requests === 0 || !isStalled(socket, connection)) continue;
        stalled.add(socket);
        if (performance.now() - connection.since >= idleMs) socket.destroy();
      }
    },
    Math.min(1000, idleMs / 4),
  ).unref();
  server.on("close", () => clearInterval(watch));
  const longest = (): Socket => {
    const since = (socket: Socket) => connections.get(socket)!.since;
    const [silent] = idle; // the new one itself, where all others are busy
    for (const socket of stalled)
      if (isStalled(socket, connections.get(socket)!)) return since(socket) < since(silent!) ? socket : silent!;
    return silent!;
  };
  server.on("connection", (socket) => {
    connections.set(socket, { requests: 0, left: 0, waiting: 0, since: performance.now() });
    idle.add(socket);
    socket.on("close", () => {
      connections.delete(socket);
      idle.delete(socket);
      stalled.delete(socket);
    });
    if (connections.size <= most) return;
    const cut = longest();
    idle.delete(cut);
    stalled.delete(cut);
    cut.destroy();
  });
  server.on("request", ({ socket }, response) => {
    const connection = connections.get(socket);
    if (!connection) return; // it is closed
    connection.requests++;
    idle.delete(socket);
    response.on("close", () => {
      if (--connection.requests > 0 || !connections.has(socket)) return;
      stalled.delete(socket);
      connection.since = performance.now();
      idle.add(socket);
    });
  });
}

/** Bytes that the system has not taken yet of the write that is under way: Node itself looks there before it calls a socket idle. */
const waitingOf = (socket: Socket): number =>
  (socket as { _handle?: { writeQueueSize?: number } | null })._handle?.writeQueueSize ?? 0;

function listening(server: Server, host: string, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) => {
      const why = reasons[error.code ?? ""] ?? error.message;
      reject(new RequestError(`${host}:${port}: ${why}`, { cause: error }));
    });
    server.listen(port, host, resolve);
  });
}

const reasons: Readonly<Record<string, string>> = {
  EADDRINUSE: "another program listens there; expected a free port (--port 0 takes any)",
  EACCES: "this user may not listen there; expected a port from 1024",
  EADDRNOTAVAIL: "this machine has no such address; expected one of its own, 127.0.0.1 or 0.0.0.0",
  ENOTFOUND: "there is no such host; expected an address of this machine",
};

function drained(server: Server): Promise<void> {
  return new Promise((resolve) => {
    // a connection that is kept alive becomes idle when its request is answered
    const sweep = setInterval(() => server.closeIdleConnections(), 50);
    server.close(() => {
      clearInterval(sweep);
      resolve();
    });
  });
}
