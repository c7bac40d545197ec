// What a teacher says comes next: of each row its k likeliest tokens with their probabilities, and the mass of the rest.
//
// Against them a student has the cross-entropy of k + 1 outcomes, the rest being one: a lower bound of that over all
// tokens (data processing), equal where k is the vocabulary. How the rest's mass lies inside is left to the student. Its
// gradient by the student's logits is q − p, with p's rest laid out as q's own: p[j] = rest · q[j] / (1 − Σ q[k]).
//
// n rows · V vocabulary · q the student's probabilities

import type { Backend } from "../tensor/backend.ts";
import { f16ToF32, f32ToF16 } from "../tensor/dtype.ts";
import { reshape, rows, splice } from "../tensor/ops.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Tape } from "./tape.ts";

export interface SoftTargets {
  readonly k: number;
  readonly ids: Int32Array; // [n·k], the likeliest first
  readonly probabilities: Float64Array; // [n·k]
  readonly rest: Float64Array; // [n]; with the k they sum to 1, as far as 16 bits of their logarithms say it
}

/** The soft targets of a teacher's logits `[n, V]`, rounded as they are stored: a run from a store is the same run. */
export async function softTargetsOf(backend: Backend, logits: Tensor, k: number): Promise<SoftTargets> {
  const [n, V] = logits.shape as [number, number];
  const ids = likeliest(await backend.read(logits), n, V, Math.min(k, V));
  const width = ids.length / Math.max(1, n);
  const { at } = await probabilitiesAt(backend, logits, ids, width);
  return decodeSoftTargets(encodeSoftTargets({ ...withRest(at, n), ids }, V), n, width, V);
}

/** Ids of the k largest of each row, the largest first, the lower id of equal ones first. */
function likeliest(logits: ArrayLike<number>, n: number, V: number, k: number): Int32Array {
  const ids = new Int32Array(n * k);
  const best = new Float64Array(k);
  for (let t = 0; t < n; t++) {
    best.fill(Number.NEGATIVE_INFINITY);
    const own = ids.subarray(t * k, (t + 1) * k);
    let held = 0;
    for (let id = 0; id < V; id++) {
      const value = logits[t * V + id]!;
      if (held === k && value <= best[k - 1]!) continue;
      let place = held < k ? held++ : k - 1;
      for (; place > 0 && best[place - 1]! < value; place--) {
        best[place] = best[place - 1]!;
        own[place] = own[place - 1]!;
      }
      best[place] = value;
      own[place] = id;
    }
  }
  return ids;
}

/**
 * Of rows `[n, V]` the probabilities at `ids`, `width` of them a row. The derivative of the cross-entropy with one column
 * is the softmax but for that column; a pivot that is nobody's else is taken for it. `dense` is that derivative, in memory of
 * the backend.
 */
async function probabilitiesAt(backend: Backend, logits: Tensor, ids: Int32Array, width: number) {
  const [n, V] = logits.shape as [number, number];
  const pivots = new Int32Array(n);
  for (let t = 0; t < n; t++) {
    const own = ids.subarray(t * width, (t + 1) * width);
    while (pivots[t]! < V - 1 && own.includes(pivots[t]!)) pivots[t]!++;
  }
  const dense = backend.backward!.crossEntropyBackward(logits, pivots, backend.from(Float64Array.of(n), [])); // [n, V]
  const places = new Int32Array(n * (width + 1));
  for (let i = 0; i < n * width; i++) places[i] = Math.floor(i / width) * V + ids[i]!;
  for (let t = 0; t < n; t++) places[n * width + t] = t * V + pivots[t]!;
  const gathered = await backend.read(rows(reshape(dense, [n * V, 1]), places));
  const at = gathered.slice(0, n * width);
  const pivot = gathered.slice(n * width).map((slope) => slope + 1);
  for (const [i, id] of ids.entries()) if (id === pivots[Math.floor(i / width)]) at[i]! += 1; // k is the vocabulary
  return { at, pivot, pivots, dense };
}

function withRest(at: ArrayLike<number>, n: number): Omit<SoftTargets, "ids"> {
  const k = at.length / Math.max(1, n);
  const rest = new Float64Array(n);
  for (let t = 0; t < n; t++) {
    let sum = 0;
    for (let i = t * k; i < (t + 1) * k; i++) sum += at[i]!;
    rest[t] = Math.max(0, 1 - sum);
  }
  return { k, probabilities: Float64Array.from(at), rest };
}

/** Of a step: the student's loss, and what it is made of, in nats a row. */
export interface DistilledLoss {
  /** `(1 − share) · hard + share · soft`, on the tape. */
  readonly loss: Tensor;
  /** Of the tokens that came. */
  readonly hard: number;
  /** From the teacher's distribution to the student's: 0 where they agree. */
  readonly divergence: number;
}

const leastRest = 1e-6; // of 1 − Σ q, which float32 knows no better
const leastQ = 2 ** -126; // the smallest that float32 knows whole

/** The loss of a student's logits `[n, V]` on a tape, by the tokens that came and by a teacher's targets. */
export async function distilledLoss(
  tape: Tape,
  logits: Tensor,
  targets: Int32Array,
  soft: SoftTargets,
  share: number,
): Promise<DistilledLoss> {
  let [hard, divergence] = [0, 0];
  const loss = await tape.scalar(logits, async (z) => {
    const made = await lossAndGradient(z, targets, soft, share);
    [hard, divergence] = [made.hard, made.divergence];
    return { value: (1 - share) * hard + share * made.soft, gradient: made.gradient };
  });
  return { loss, hard, divergence };
}

/** In nats a row, and the gradient by z `[n, V]`, in memory of the backend. */
async function lossAndGradient(z: Tensor, targets: Int32Array, teacher: SoftTargets, share: number) {
  const { backend } = z;
  const [n, V] = z.shape as [number, number];
  const { k } = teacher;
  const width = k + 1;
  const columns = new Int32Array(n * width); // the teacher's, then the target's
  for (let t = 0; t < n; t++) {
    columns.set(teacher.ids.subarray(t * k, (t + 1) * k), t * width);
    columns[t * width + k] = targets[t]!;
  }
  const { at: q, pivot, pivots, dense } = await probabilitiesAt(backend, z, columns, width);
  const places = columns.map((id, i) => Math.floor(i / width) * V + id);
  const logits = await backend.read(rows(reshape(z, [n * V, 1]), places));
  const sums = { hard: 0, soft: 0, divergence: 0 };
  const scales = new Float64Array(n); // of q in columns that nobody names
  const slopes = new Float64Array(n * (width + 1)); // of the others: [n, k + 1], then the pivots'
  for (let t = 0; t < n; t++) {
    const [from, to] = [t * width, (t + 1) * width];
    const ids = columns.subarray(from, to);
    const row = rowLoss({ ids, z: logits.slice(from, to), q: q.slice(from, to) }, outcomesOf(teacher, t), share);
    scales[t] = row.scale;
    slopes.set(row.slopes, from);
    const named = ids.indexOf(pivots[t]!); // -1, but where k is the vocabulary
    slopes[n * width + t] = named < 0 ? row.scale * pivot[t]! : row.slopes[named]!;
    for (const key of ["hard", "soft", "divergence"] as const) sums[key] += row[key];
  }
  const per = (x: Float64Array) => x.map((value) => value / n);
  const scaled = backend.mul(dense, backend.from(per(scales), [n, 1])); // [n, V]
  backend.backward!.free(dense);
  const all = Int32Array.from([...places, ...pivots.map((id, t) => t * V + id)]);
  const gradient = splice(reshape(scaled, [n * V, 1]), backend.from(per(slopes), [all.length, 1]), all);
  backend.backward!.free(scaled);
  return {
    ...{ hard: sums.hard / n, soft: sums.soft / n, divergence: sums.divergence / n },
    gradient: reshape(gradient, [n, V]),
  };
}

/** What a teacher says of one row: probabilities of its k tokens and of the rest, which sum to 1. */
interface Outcomes {
  readonly p: Float64Array; // [k]
  readonly rest: number;
}

function outcomesOf({ k, probabilities, rest }: SoftTargets, t: number): Outcomes {
  const p = probabilities.subarray(t * k, (t + 1) * k);
  const mass = p.reduce((sum, value) => sum + value, rest[t]!); // 1, but for rounding
  return { p: p.map((value) => value / mass), rest: rest[t]! / mass };
}

/** A student's row at the teacher's k tokens and, last, at the one that came. */
interface StudentRow {
  readonly ids: Int32Array; // [k + 1]
  readonly z: ArrayLike<number>; // [k + 1], logits
  readonly q: ArrayLike<number>; // [k + 1], probabilities
}

/** A row's losses, and what they are by its logits: `slopes` `[k + 1]` at its ids, `scale · q` everywhere else. */
function rowLoss({ ids, z, q }: StudentRow, { p, rest }: Outcomes, share: number) {
  const k = p.length;
  let best = 0; // where the softmax is largest its logarithm is most exact
  for (let i = 1; i <= k; i++) if (z[i]! > z[best]!) best = i;
  const lse = z[best]! - Math.log(Math.max(leastQ, q[best]!));
  const came = ids.indexOf(ids[k]!); // k where the teacher does not name it
  const slopes = new Float64Array(k + 1);
  let [soft, entropy, seen] = [0, 0, 0];
  for (let i = 0; i < k; i++) {
    seen += q[i]!;
    soft -= p[i]! > 0 ? p[i]! * (z[i]! - lse) : 0;
    entropy -= p[i]! > 0 ? p[i]! * Math.log(p[i]!) : 0;
    slopes[i] = q[i]! - share * p[i]! - (i === came ? 1 - share : 0);
  }
  const left = Math.max(leastRest, 1 - seen); // the student's own rest
  if (rest > 0) {
    soft -= rest * Math.log(left);
    entropy -= rest * Math.log(rest);
  }
  const scale = 1 - (share * rest) / left;
  slopes[k] = came === k ? scale * q[k]! - (1 - share) : slopes[came]!;
  return { hard: lse - z[k]!, soft, divergence: soft - entropy, slopes, scale };
}

// ---- as bytes ----

/** Bytes of a row: ids as u16, or u32 of larger vocabularies, then the logarithms of k + 1 probabilities as f16. */
export const softRowBytes = (k: number, V: number): number => k * idBytes(V) + 2 * (k + 1);

const idBytes = (V: number) => (V <= 65536 ? 2 : 4);

/** All ids, then all logarithms of the k, then those of the rest, little-endian. */
export function encodeSoftTargets({ k, ids, probabilities, rest }: SoftTargets, V: number): Uint8Array {
  const n = rest.length;
  const bytes = new Uint8Array(n * softRowBytes(k, V));
  const view = new DataView(bytes.buffer);
  const size = idBytes(V);
  for (const [i, id] of ids.entries()) size === 2 ? view.setUint16(2 * i, id, true) : view.setUint32(4 * i, id, true);
  const logs = n * k * size;
  const set = (i: number, p: number) => view.setUint16(logs + 2 * i, f32ToF16(Math.log(p)), true);
  for (const [i, p] of probabilities.entries()) set(i, p);
  for (const [t, p] of rest.entries()) set(n * k + t, p);
  return bytes;
}

/** The targets of n rows. Encoded again they are the same bytes. */
export function decodeSoftTargets(bytes: Uint8Array, n: number, k: number, V: number): SoftTargets {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const size = idBytes(V);
  const ids = Int32Array.from({ length: n * k }, (_, i) =>
    size === 2 ? view.getUint16(2 * i, true) : view.getUint32(4 * i, true),
  );
  const logs = n * k * size;
  const get = (i: number) => Math.exp(f16ToF32(view.getUint16(logs + 2 * i, true)));
  return {
    ...{ k, ids },
    probabilities: Float64Array.from({ length: n * k }, (_, i) => get(i)),
    rest: Float64Array.from({ length: n }, (_, t) => get(n * k + t)),
  };
}
