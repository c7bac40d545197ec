// What an API has to say of itself, so that one piece of code can serve all of them.

import type { z } from "zod";
import type { Refusal } from "./errors.ts";
import type { ServerEvent } from "./events.ts";
import type { Ask, Reply, Said } from "./generation.ts";

/** What an answer says of itself. */
export interface Meta {
  readonly model: string;
  readonly requestId: string;
}

/** An API in whose words a client asks and is answered. */
export interface Dialect<Schema extends z.ZodType = z.ZodType> {
  /** A sentence on it. */
  readonly summary: string;
  readonly schema: Schema;
  /** Throws Refusal for what the schema cannot say. */
  ask(body: z.output<Schema>): Ask;
  isStreamed(body: z.output<Schema>): boolean;
  whole(body: z.output<Schema>, replies: readonly Reply[], meta: Meta): object;
  events(body: z.output<Schema>, said: AsyncIterable<Said>, meta: Meta): AsyncGenerator<ServerEvent>;
  /** What tells a reader in the middle of a stream, after `told` events, that it fails. */
  failure(refusal: Refusal, meta: Meta, told: number): ServerEvent;
  /** What a waiting reader is sent now and then. */
  readonly keepAlive: string;
  error(refusal: Refusal, requestId: string): object;
}
