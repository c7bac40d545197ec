// What a person has set, in the browser's localStorage.

export interface Settings {
  readonly theme: "system" | "light" | "dark";
  readonly system: string;
  /** Null: what the checkpoint recommends. */
  readonly temperature: number | null;
  readonly topP: number | null;
  /** Null: until the context is full. */
  readonly maxTokens: number | null;
  /** Null: another one each time. */
  readonly seed: number | null;
  readonly key: string;
}

export const defaults: Settings = {
  theme: "system",
  system: "",
  temperature: null,
  topP: null,
  maxTokens: 1024,
  seed: null,
  key: "",
};

const NAME = "llama4.settings";

export function loadSettings(storage: Pick<globalThis.Storage, "getItem"> = localStorage): Settings {
  try {
    return { ...defaults, ...(JSON.parse(storage.getItem(NAME) ?? "{}") as Partial<Settings>) };
  } catch {
    return defaults; // none that can be read
  }
}

export function saveSettings(settings: Settings): void {
  try {
    localStorage.setItem(NAME, JSON.stringify(settings));
  } catch {
    // a browser that keeps nothing: they hold until the page is left
  }
}
