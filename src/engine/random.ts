// Philox 2×32-10: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". A counter goes in, a number comes
// out, nothing is remembered: token i of a request draws the same number whatever else is in the batch.

const MULTIPLIER = 0xd256d193;
const KEY_STEP = 0x9e3779b9;

/** A number in [0, 1) of 53 bits, for a seed below 2⁵³ and a counter below 2³². */
export function uniform(seed: number, counter: number): number {
  const [low, high] = philox(counter >>> 0, Math.floor(seed / 2 ** 32), seed >>> 0);
  return ((high >>> 5) * 2 ** 26 + (low >>> 6)) / 2 ** 53;
}

/** Ten rounds over two 32-bit words with a 32-bit key. */
export function philox(x: number, y: number, key: number): [number, number] {
  for (let round = 0; round < 10; round++) {
    const high = multiplyHigh(MULTIPLIER, x);
    const low = Math.imul(MULTIPLIER, x) >>> 0;
    x = (high ^ key ^ y) >>> 0;
    y = low;
    key = (key + KEY_STEP) >>> 0;
  }
  return [x, y];
}

/** The upper 32 bits of the product of two 32-bit words. */
function multiplyHigh(a: number, b: number): number {
  const [a1, a0, b1, b0] = [a >>> 16, a & 0xffff, b >>> 16, b & 0xffff];
  const middle = a1 * b0 + ((a0 * b0) >>> 16);
  const carried = (middle % 2 ** 16) + a0 * b1;
  return a1 * b1 + Math.floor(middle / 2 ** 16) + Math.floor(carried / 2 ** 16);
}
