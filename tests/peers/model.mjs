// A model in node-llama-cpp's own build of llama.cpp, on the processor alone; nothing is built or downloaded.

import { getLlama, LlamaLogLevel } from "node-llama-cpp";

export async function openModel(modelPath, threads) {
  const llama = await getLlama({
    gpu: false,
    build: "never",
    skipDownload: true,
    maxThreads: threads,
    logLevel: LlamaLogLevel.error,
  });
  return { llama, model: await llama.loadModel({ modelPath }) };
}
