// The special tokens of the Llama 4 vocabulary, in the order of their ids: spec §9.5, from Meta's tokenizer.py.

const numbered = (name: string, from: number, to: number): string[] =>
  Array.from({ length: to - from }, (_, i) => `<|${name}_${from + i}|>`);

/** All 2,048, first those that text needs. Tokens are found by their text, never by number. */
export const LLAMA4_SPECIAL_TOKENS: readonly string[] = [
  "<|begin_of_text|>",
  "<|end_of_text|>",
  "<|fim_prefix|>",
  "<|fim_middle|>",
  "<|fim_suffix|>",
  "<|header_start|>",
  "<|header_end|>",
  "<|eom|>",
  "<|eot|>",
  "<|step|>",
  ...numbered("text_post_train_reserved_special_token", 0, 6),
  "<|python_start|>",
  "<|python_end|>",
  "<|finetune_right_pad|>",
  ...numbered("text_post_train_reserved_special_token", 8, 69),
  "<|image_start|>",
  "<|image_end|>",
  ...numbered("vision_reserved_special_token", 0, 2),
  "<|tile_x_separator|>",
  "<|tile_y_separator|>",
  ...numbered("vision_reserved_special_token", 2, 6),
  "<|image|>",
  "<|vision_reserved_special_token_6|>",
  "<|patch|>",
  ...numbered("vision_reserved_special_token", 7, 1048),
  ...numbered("reasoning_reserved_special_token", 0, 8),
  "<|reasoning_thinking_start|>",
  "<|reasoning_thinking_end|>",
  ...numbered("reserved_special_token", 0, 904),
];

/** The tokens that end a reply, in whichever of Llama's vocabularies: Llama 4's, and Llama 3's in its small relatives. */
export const STOP_TOKENS: readonly string[] = ["<|end_of_text|>", "<|eom|>", "<|eot|>", "<|eom_id|>", "<|eot_id|>"];

// Without these there is no chat and no image; a small vocabulary takes them first.
const NEEDED = new Set([
  "<|begin_of_text|>",
  "<|end_of_text|>",
  "<|header_start|>",
  "<|header_end|>",
  "<|eom|>",
  "<|eot|>",
  "<|python_start|>",
  "<|python_end|>",
  "<|finetune_right_pad|>",
  "<|image_start|>",
  "<|image_end|>",
  "<|tile_x_separator|>",
  "<|tile_y_separator|>",
  "<|image|>",
  "<|patch|>",
]);

/** The `room` special tokens that a small vocabulary keeps, in their old order: those that are needed, then the first of the rest. */
export function fittingSpecials(names: readonly string[], room: number): string[] {
  const kept = new Set([...names.filter((n) => NEEDED.has(n)), ...names.filter((n) => !NEEDED.has(n))].slice(0, room));
  return names.filter((n) => kept.has(n));
}
