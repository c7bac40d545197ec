// How error messages show what a file holds: short, and without walking into it, since it may nest a million deep.

export function shown(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}…` : value);
  if (Array.isArray(value)) return `a list of ${value.length}`;
  if (typeof value !== "object" || value === null) return value === undefined ? "absent" : String(value);
  return "type" in value && typeof value.type === "string" ? `an object of type ${shown(value.type)}` : "an object";
}
