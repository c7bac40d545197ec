// API keys: which one a request carries, compared in a time that does not depend on how much of it is right.

/** Finds the client that a request comes from. */
export class Keys {
  readonly #digests: Promise<readonly Uint8Array[]>;
  readonly isEmpty: boolean;

  constructor(keys: readonly string[]) {
    this.isEmpty = keys.length === 0;
    this.#digests = Promise.all(keys.map(digest));
  }

  /** The number of the key that the headers carry, as OpenAI's clients send it or as Anthropic's; -1 for none of ours. */
  async find(headers: Headers): Promise<number> {
    const bearer = /^bearer\s+(.+)$/i.exec(headers.get("authorization") ?? "")?.[1];
    const given = await digest(bearer ?? headers.get("x-api-key") ?? "");
    let found = -1;
    for (const [i, known] of (await this.#digests).entries()) if (equal(given, known)) found = i; // all are compared
    return found;
  }
}

// Digests have one length, and where they first differ says nothing of the keys.
async function digest(key: string): Promise<Uint8Array> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(key)));
}

function equal(a: Uint8Array, b: Uint8Array): boolean {
  let difference = 0;
  for (let i = 0; i < a.length; i++) difference |= a[i]! ^ b[i]!;
  return difference === 0;
}
