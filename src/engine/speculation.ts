// Speculation: guessed tokens ride along in a step, and those that turn out right are tokens without a step of their own
// (Leviathan et al. 2023, "Fast inference from transformers via speculative decoding").
//
// A guess is right when it is the token that the sampler draws there, from the same logits with the same random number
// as without speculation. So the reply is the same, token by token, and its distribution with it. A fixed guess is
// accepted with its probability, as rejection sampling would. A draft model draws its guesses with the same numbers, so
// that likely both draw the same (after Daliri et al. 2025, "Coupling without communication and drafter-invariant
// speculative decoding"); unlike with rejection, the reply of a seed depends on no draft and on no clock.
//
// How many to guess is a matter of cost: k more rows make a step slower, and only a part of them is accepted. Both are
// measured, and losses are paid from a credit, so that where guessing never pays it costs about 1 % and a step.

/** Most tokens guessed at a time. */
export const MOST_GUESSED = 16;

/** A sequence about to get its next token. */
export interface Decoding {
  readonly sequence: number;
  readonly tokens: readonly number[];
  /** Tokens that may be guessed; 0 where only one more is wanted. */
  readonly most: number;
}

export interface Wanted<D extends Decoding> {
  readonly of: D;
  readonly count: number;
}

/** Where guesses come from. */
export interface Guesser<D extends Decoding = Decoding> {
  /** For each kind of guess, the part that is right as long as nothing is known. */
  readonly hopes: readonly number[];
  /** Reads what the sequences began with, a step's worth at a time. */
  follow(batch: readonly D[]): Promise<void>;
  /** How many tokens it can guess, and of which kind they are; undefined where it has no idea. */
  look(of: D): { readonly kind: number; readonly most: number } | undefined;
  /** Guesses, as many as asked for each, or fewer. */
  guess(wanted: readonly Wanted<D>[]): Promise<readonly (readonly number[])[]>;
  /** The sequence is over. */
  forget(sequence: number): void;
  close(): void;
}

/** A sequence's chance that the next guess is right, for each kind of guess. Old evidence fades. */
export class Acceptance {
  readonly #hopes: readonly number[];
  readonly #right: Float64Array;
  readonly #judged: Float64Array;

  constructor(hopes: readonly number[]) {
    this.#hopes = hopes;
    this.#right = new Float64Array(hopes.length);
    this.#judged = new Float64Array(hopes.length);
  }

  /** The hope counts like two judged tokens. */
  of(kind: number): number {
    return (this.#right[kind]! + 2 * this.#hopes[kind]!) / (this.#judged[kind]! + 2);
  }

  /** Behind the first wrong token nothing is judged. */
  learn(kind: number, guessed: number, accepted: number): void {
    this.#fade(kind, 0.9);
    this.#right[kind]! += accepted;
    this.#judged[kind]! += Math.min(accepted + 1, guessed);
  }

  /** A chance to guess was left out: in the end there is hope again, and one more trial. */
  pass(kind: number): void {
    this.#fade(kind, 0.98);
  }

  #fade(kind: number, part: number): void {
    this.#right[kind]! *= part;
    this.#judged[kind]! *= part;
  }
}

/** Milliseconds of a step by its rows, as measured; between measured ones on a line. */
export class StepCost {
  readonly #ms = new Map<number, number>();

  learn(rows: number, ms: number): void {
    const before = this.#ms.get(rows);
    this.#ms.set(rows, before === undefined ? ms : before + (ms - before) / 4);
  }

  /** Undefined as long as no step was measured. */
  of(rows: number): number | undefined {
    let below = 0;
    let above = Infinity;
    for (const n of this.#ms.keys()) {
      if (n <= rows && n > below) below = n;
      if (n >= rows && n < above) above = n;
    }
    const [low, high] = [this.#ms.get(below), this.#ms.get(above)];
    if (low === undefined) return high === undefined ? undefined : (high * shape(rows)) / shape(above);
    if (high === undefined) return (low * shape(rows)) / shape(below);
    return above === below ? low : low + ((high - low) * (rows - below)) / (above - below);
  }

  /** What was measured above `rows` is doubted a little: one slow step must not forbid guessing for ever. */
  doubt(rows: number): void {
    const plain = this.#ms.get(rows);
    if (plain === undefined) return;
    for (const [n, ms] of this.#ms) if (n > rows) this.#ms.set(n, ms + ((plain * shape(n)) / shape(rows) - ms) / 100);
  }
}

/** What rows cost before anything is known: an eighth of the first. */
const shape = (rows: number) => 1 + (rows - 1) / 8;

export interface Prospect {
  /** The chance of each guessed token, those before it being right. */
  readonly chance: number;
  readonly most: number;
}

export interface Costs {
  /** Of a step with so many rows. */
  step(rows: number): number;
  /** Of guessing so many tokens, for all sequences together. */
  guessing(depth: number): number;
}

/**
 * How many tokens to guess for each sequence so that a step brings the most tokens in its time. `batch` sequences are in
 * the step, those without a prospect too. The step may become at most `bound` dearer than without guesses.
 */
export function guessCounts(
  prospects: readonly Prospect[],
  { batch, room, bound }: { batch: number; room: number; bound: number },
  costs: Costs,
): number[] {
  const rows = prospects.flatMap(({ chance, most }, i) =>
    Array.from({ length: most }, (_, j) => ({ i, depth: j + 1, chance: chance ** (j + 1) })),
  );
  rows.sort((a, b) => b.chance - a.chance || a.depth - b.depth);
  const plain = costs.step(batch);
  let best = { speed: batch / plain, rows: 0 };
  let tokens = batch;
  let deepest = 0;
  for (const [n, { depth, chance }] of rows.slice(0, room).entries()) {
    tokens += chance;
    deepest = Math.max(deepest, depth);
    const ms = costs.step(batch + n + 1) + costs.guessing(deepest);
    if (ms - plain > bound) break;
    if (tokens / ms > best.speed) best = { speed: tokens / ms, rows: n + 1 };
  }
  const counts = prospects.map(() => 0);
  for (const { i } of rows.slice(0, best.rows)) counts[i]!++;
  return counts;
}

// Measured in steps without guesses.
const FIRST_CREDIT = 1;
const CREDIT_OF_A_STEP = 0.01;
const MOST_CREDIT = 8;
/** So many steps with guesses, then one without: its cost is what all is compared with. */
const STEPS_BETWEEN_PLAIN = 63;

export interface Judged {
  readonly sequence: number;
  readonly guessed: number;
  readonly accepted: number;
}

/** Decides what is guessed in each step, by what guesses have brought and cost. */
export class Speculation<D extends Decoding = Decoding> {
  readonly #guesser: Guesser<D>;
  readonly #acceptance = new Map<number, Acceptance>();
  readonly #cost = new StepCost();
  /** Of one token for all sequences; undefined before the first. */
  #guessMs: number | undefined;
  #credit = FIRST_CREDIT;
  #sincePlain = 0;
  /** What this step's guesses are. */
  #asked: { readonly sequence: number; readonly kind: number }[] = [];
  #startedAt = 0;
  #guessedMs = 0;
  readonly #now: () => number;

  constructor(guesser: Guesser<D>, now: () => number = () => performance.now()) {
    this.#guesser = guesser;
    this.#now = now;
  }

  /** Guesses for the sequences of the next step, at most `room` in all; often none. */
  async propose(batch: readonly D[], room: number): Promise<ReadonlyMap<number, readonly number[]>> {
    await this.#guesser.follow(batch);
    this.#asked = [];
    this.#guessedMs = 0;
    this.#startedAt = this.#now();
    const plain = this.#cost.of(batch.length);
    if (plain === undefined || this.#sincePlain >= STEPS_BETWEEN_PLAIN) return new Map();
    const prospects = batch.flatMap((of) => {
      const found = of.most > 0 ? this.#guesser.look(of) : undefined;
      if (!found) return [];
      const most = Math.min(found.most, of.most, MOST_GUESSED);
      return [{ of, kind: found.kind, most, chance: this.#of(of.sequence).of(found.kind) }];
    });
    const counts = guessCounts(
      prospects,
      { batch: batch.length, room, bound: this.#credit * plain },
      {
        step: (rows) => this.#cost.of(rows)!,
        guessing: (depth) => depth * (this.#guessMs ?? 0),
      },
    );
    const wanted = prospects.map(({ of }, i) => ({ of, count: counts[i]! })).filter(({ count }) => count > 0);
    for (const [i, { of, kind }] of prospects.entries()) {
      if (counts[i] === 0) this.#of(of.sequence).pass(kind);
      else this.#asked.push({ sequence: of.sequence, kind });
    }
    if (wanted.length === 0) return new Map();
    const start = this.#now();
    const guesses = await this.#guesser.guess(wanted);
    this.#guessedMs = this.#now() - start;
    return new Map(wanted.map(({ of }, i) => [of.sequence, guesses[i]!]));
  }

  /** The step for which `propose` was called is done; so many guesses each of its sequences had and kept. */
  learn(results: readonly Judged[]): void {
    const ms = this.#now() - this.#startedAt;
    const batch = results.length;
    const guessed = results.reduce((sum, r) => sum + r.guessed, 0);
    const accepted = results.reduce((sum, r) => sum + r.accepted, 0);
    this.#learnGuessing(results);
    const rows = batch + guessed;
    this.#cost.learn(rows, ms - this.#guessedMs);
    if (guessed === 0 && this.#guessedMs === 0) {
      this.#sincePlain = 0;
      this.#cost.doubt(batch);
      this.#earn(CREDIT_OF_A_STEP);
      return;
    }
    this.#sincePlain++;
    for (const { sequence, kind } of this.#asked) {
      const result = results.find((r) => r.sequence === sequence);
      if (result && result.guessed > 0) this.#of(sequence).learn(kind, result.guessed, result.accepted);
    }
    // Rows together cost no more than each in a step of its own, or hardly: what is beyond is something else than guessing.
    const plain = this.#cost.of(batch)!;
    const due = Math.min(ms, (1.25 * plain * rows) / batch + this.#guessedMs);
    this.#earn((batch + accepted) / batch - due / plain);
  }

  forget(sequence: number): void {
    this.#acceptance.delete(sequence);
    this.#guesser.forget(sequence);
  }

  close(): void {
    this.#guesser.close();
  }

  #learnGuessing(results: readonly { guessed: number }[]): void {
    const deepest = Math.max(0, ...results.map((r) => r.guessed));
    if (deepest === 0) return;
    const ms = this.#guessedMs / deepest;
    this.#guessMs = this.#guessMs === undefined ? ms : this.#guessMs + (ms - this.#guessMs) / 4;
  }

  #earn(steps: number): void {
    this.#credit = Math.min(MOST_CREDIT, this.#credit + steps);
  }

  #of(sequence: number): Acceptance {
    let acceptance = this.#acceptance.get(sequence);
    if (!acceptance) {
      acceptance = new Acceptance(this.#guesser.hopes);
      this.#acceptance.set(sequence, acceptance);
    }
    return acceptance;
  }
}
