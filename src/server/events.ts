// Server-sent events: an asynchronous sequence as a body that is written only as fast as it is read.

export interface ServerEvent {
  readonly event?: string;
  readonly data: string;
}

export interface EventStreamOptions {
  /** A reader that takes nothing for so long is given up. */
  readonly idleMs: number;
  /** After so long without an event the reader is told that all is well. */
  readonly keepAliveMs: number;
  readonly keepAlive: string;
  /** Called once: all was read, or with `isWhole` false it failed or nobody wants it any more. */
  readonly onEnd: (isWhole: boolean, reason?: unknown) => void;
}

/** The events as bytes. What the iterator throws ends the stream in an error; it should yield its last words instead. */
export function eventStream(
  events: AsyncIterator<ServerEvent>,
  { idleMs, keepAliveMs, keepAlive, onEnd }: EventStreamOptions,
): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  let next: Promise<IteratorResult<ServerEvent>> | undefined;
  let idle: ReturnType<typeof setTimeout> | undefined;
  let isOver = false;
  const end = (isWhole: boolean, reason?: unknown) => {
    if (!isOver) onEnd(isWhole, reason);
    isOver = true;
  };
  const leave = (reason: unknown) => {
    clearTimeout(idle);
    end(false, reason);
    events.return?.().catch(() => {});
  };
  const watch = (controller: ReadableStreamDefaultController<Uint8Array>) => {
    idle = setTimeout(() => {
      const error = new Error(`nothing was read for ${idleMs} ms`);
      controller.error(error);
      leave(error);
    }, idleMs);
  };
  return new ReadableStream<Uint8Array>(
    {
      start: watch,
      async pull(controller) {
        clearTimeout(idle);
        next ??= events.next();
        const result = await within(next, keepAliveMs).catch((error: unknown) => {
          leave(error);
          throw error;
        });
        if (result === undefined) controller.enqueue(encoder.encode(keepAlive));
        else {
          next = undefined;
          if (result.done) {
            end(true);
            controller.close();
            return;
          }
          controller.enqueue(encoder.encode(written(result.value)));
        }
        watch(controller);
      },
      cancel: leave,
    },
    { highWaterMark: 0 },
  );
}

const written = ({ event, data }: ServerEvent) => `${event === undefined ? "" : `event: ${event}\n`}data: ${data}\n\n`;

/** What a promise gives, or undefined if that takes longer. */
export async function within<T>(promise: Promise<T>, ms: number): Promise<T | undefined> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<undefined>((resolve) => {
    timer = setTimeout(() => resolve(undefined), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
