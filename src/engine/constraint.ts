// What a reply can be held to.

import type { Tool } from "../prompt/chat-format.ts";
import { RequestError } from "../tensor/errors.ts";

/** The form that a reply has to have. */
export type Constraint =
  /** Any JSON object. */
  | { readonly type: "json" }
  | { readonly type: "json_schema"; readonly schema: Readonly<Record<string, unknown>> }
  /** A call of one of these tools; with `parallel`, of one or several. */
  | { readonly type: "tool_calls"; readonly tools: readonly Tool[]; readonly parallel: boolean };

/** Throws RequestError: tokens are not masked by a grammar, and a reply that merely might fit is not what was asked for. */
export function refuseConstraint({ type }: Constraint): never {
  const asked = { json: "JSON", json_schema: "a JSON schema", tool_calls: "tool calls" } as const;
  throw new RequestError(
    `the reply is to be held to ${asked[type]}; expected no such constraint: this version has no grammar engine, so ask for it in the prompt instead`,
  );
}
