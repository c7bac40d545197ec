import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["tests/**/*.test.ts"],
    exclude: ["tests/peers/**", "**/node_modules/**"],
    testTimeout: 120_000,
    pool: "forks",
  },
});
