// As runtime_process.py, for onnxruntime-web in Node, in WebAssembly: `node runtime_process.mjs NODE_MODULES`.
// NODE_MODULES is the folder that holds onnxruntime-web.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";
import { createInterface } from "node:readline";

const folder = resolve(process.argv[2], "onnxruntime-web");
const ort = createRequire(folder + "/")(folder);
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "fatal";

function tensor([path, shape]) {
  const bytes = readFileSync(path); // of Node's pool, where a float may lie across a boundary
  const values = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
  return new ort.Tensor("float32", values, shape);
}

async function answer({ model, outputs, batches }) {
  const session = await ort.InferenceSession.create(readFileSync(model), { executionProviders: ["wasm"] });
  const made = [];
  for (const [number, batch] of batches.entries()) {
    const feeds = Object.fromEntries(Object.entries(batch).map(([name, array]) => [name, tensor(array)]));
    const results = await session.run(feeds, outputs);
    made.push(outputs.map((name, index) => {
      const { data, dims } = results[name];
      const path = `${model}.web.${number}.${index}`;
      writeFileSync(path, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
      return [path, dims];
    }));
  }
  await session.release();
  return made;
}

try {
  const { version } = JSON.parse(readFileSync(resolve(folder, "package.json"), "utf8"));
  process.stdout.write(JSON.stringify(version) + "\n");
  for await (const line of createInterface({ input: process.stdin })) {
    process.stdout.write(JSON.stringify(await answer(JSON.parse(line))) + "\n");
  }
} catch (error) {
  process.stderr.write(`${error?.message ?? error}\n`, () => process.exit(1));
}
