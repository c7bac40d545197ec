// The handler on a port, by Node's HTTP server.

import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { getRequestListener } from "@hono/node-server";
import { RequestError } from "../tensor/errors.ts";
import type { Handler } from "./handler.ts";

export interface ListenOptions {
  readonly host: string;
  /** 0 takes any that is free. */
  readonly port: number;
  /** Answers what is not the handler's: the files of the page. */
  readonly page?: ((request: Request) => Response | undefined) | undefined;
  readonly mostConnections?: number | undefined;
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
  const { host, port, page, mostConnections = 1024 } = options;
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
  limitConnections(server, mostConnections);
  await listening(server, host, port);
  const { address, family, port: bound } = server.address() as AddressInfo; // it is bound to a port, not to a path
  const name = host === "localhost" ? host : family === "IPv6" ? `[${address}]` : address;
  return {
    url: `http://${name}:${bound}`,
    drain: () => drained(server),
    cut: () => server.closeAllConnections(),
  };
}

/**
 * Where one connection more than so many comes, the one is cut that has been without a request for longest: silent, idle, or
 * sending its headers slowly. By turning away the new one, those that say nothing would keep everybody out.
 */
function limitConnections(server: Server, most: number): void {
  const requests = new Map<Socket, number>(); // that are being answered, of each connection
  const idle = new Set<Socket>(); // longest first
  server.on("connection", (socket) => {
    requests.set(socket, 0);
    idle.add(socket);
    socket.on("close", () => {
      requests.delete(socket);
      idle.delete(socket);
    });
    if (requests.size <= most) return;
    const [longest] = idle; // the new one itself, where all others are busy
    idle.delete(longest!);
    longest!.destroy();
  });
  server.on("request", ({ socket }, response) => {
    const before = requests.get(socket);
    if (before === undefined) return; // it is closed
    requests.set(socket, before + 1);
    idle.delete(socket);
    response.on("close", () => {
      const open = requests.get(socket);
      if (open === undefined) return;
      requests.set(socket, open - 1);
      if (open === 1) idle.add(socket);
    });
  });
}

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
