// Who is computed next, and who is told to come back later.

import { Refusal } from "./errors.ts";

export interface AdmissionLimits {
  /** Replies computed at once. */
  readonly concurrent: number;
  /** Requests that wait beyond them. */
  readonly queue: number;
  /** Requests of one client that are computed or wait. */
  readonly perClient: number;
}

interface Waiting {
  readonly weight: number;
  enter(): void;
}

/** A bounded queue in front of the engine. Where there is a choice, the client that was served longest ago is next. */
export class Admission {
  readonly #limits: AdmissionLimits;
  readonly #now: () => number;
  /** By client, the longest unserved first. */
  readonly #waiting = new Map<string, Waiting[]>();
  /** Requests of each client that are computed or wait. */
  readonly #held = new Map<string, number>();
  #queued = 0;
  #running = 0;
  /** Of a request, recent ones counting more; a guess before the first. */
  #serviceMs = 2000;

  constructor(limits: AdmissionLimits, now: () => number = () => performance.now()) {
    this.#limits = limits;
    this.#now = now;
  }

  get queued(): number {
    return this.#queued;
  }

  get running(): number {
    return this.#running;
  }

  /** Resolves when `weight` replies of this client may be computed; what it gives is called when they are done. */
  async enter(client: string, weight: number, signal: AbortSignal): Promise<() => void> {
    const { concurrent, queue, perClient } = this.#limits;
    signal.throwIfAborted();
    if (weight > concurrent)
      throw new Refusal(400, `${weight} replies are asked for; expected at most ${concurrent} in one request.`);
    if ((this.#held.get(client) ?? 0) >= perClient)
      throw this.#busy(`This client has ${perClient} requests in progress; expected at most that many.`);
    if (this.#queued > 0 || this.#running + weight > concurrent) {
      if (this.#queued >= queue)
        throw this.#busy(`The server is busy and ${queue} requests wait already; try again later.`);
      this.#hold(client, 1);
      await this.#wait(client, weight, signal).catch((error: unknown) => {
        this.#hold(client, -1);
        throw error;
      });
    } else {
      this.#hold(client, 1);
      this.#running += weight;
    }
    const start = this.#now();
    let isDone = false;
    return () => {
      if (isDone) return;
      isDone = true;
      this.#serviceMs += (this.#now() - start - this.#serviceMs) / 8;
      this.#running -= weight;
      this.#hold(client, -1);
      this.#next();
    };
  }

  #wait(client: string, weight: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const line = this.#waiting.get(client) ?? [];
      const place: Waiting = {
        weight,
        enter: () => {
          signal.removeEventListener("abort", leave);
          resolve();
        },
      };
      const leave = () => {
        line.splice(line.indexOf(place), 1);
        if (line.length === 0) this.#waiting.delete(client);
        this.#queued--;
        reject(signal.reason);
        this.#next(); // the one behind may be lighter
      };
      line.push(place);
      this.#waiting.set(client, line);
      this.#queued++;
      signal.addEventListener("abort", leave, { once: true });
    });
  }

  #next(): void {
    for (const [client, line] of this.#waiting) {
      const place = line[0]!;
      if (this.#running + place.weight > this.#limits.concurrent) return; // it is next, however long that takes
      line.shift();
      this.#waiting.delete(client);
      if (line.length > 0) this.#waiting.set(client, line); // behind all others
      this.#queued--;
      this.#running += place.weight;
      place.enter();
    }
  }

  #hold(client: string, change: 1 | -1): void {
    const held = (this.#held.get(client) ?? 0) + change;
    if (held > 0) this.#held.set(client, held);
    else this.#held.delete(client);
  }

  #busy(message: string): Refusal {
    const waves = (this.#queued + 1) / this.#limits.concurrent;
    const retryAfterSeconds = Math.min(60, Math.max(1, Math.ceil((waves * this.#serviceMs) / 1000)));
    return new Refusal(429, message, { retryAfterSeconds });
  }
}

/** So many tokens a minute for each client: a bucket that fills steadily, and may be overdrawn by the last prompt and by replies. */
export class TokenRate {
  readonly #perMinute: number;
  readonly #now: () => number;
  readonly #buckets = new Map<string, { tokens: number; at: number }>();

  constructor(perMinute: number, now: () => number = () => performance.now()) {
    this.#perMinute = perMinute;
    this.#now = now;
  }

  get isLimited(): boolean {
    return this.#perMinute !== Infinity;
  }

  /** Throws Refusal where the client has used up its tokens. */
  check(client: string): void {
    const { tokens } = this.#filled(client);
    if (tokens > 0) return;
    const retryAfterSeconds = Math.ceil(((1 - tokens) / this.#perMinute) * 60);
    throw new Refusal(429, `This client has used its ${this.#perMinute} tokens a minute; try again later.`, {
      retryAfterSeconds,
    });
  }

  spend(client: string, tokens: number): void {
    this.#filled(client).tokens -= tokens;
  }

  #filled(client: string): { tokens: number; at: number } {
    if (!this.isLimited) return { tokens: Infinity, at: 0 };
    const now = this.#now();
    const bucket = this.#buckets.get(client) ?? { tokens: this.#perMinute, at: now };
    bucket.tokens = Math.min(this.#perMinute, bucket.tokens + ((now - bucket.at) / 60_000) * this.#perMinute);
    bucket.at = now;
    if (!this.#buckets.has(client)) {
      // full buckets are as good as none
      for (const [name, { tokens, at }] of this.#buckets)
        if (tokens + ((now - at) / 60_000) * this.#perMinute >= this.#perMinute) this.#buckets.delete(name);
      this.#buckets.set(client, bucket);
    }
    return bucket;
  }
}
