// Runs a model in its own thread, so that the page stays responsive. The first message is the model's entry in
// models.json, with the reply {threads} or {failed}. Then each {id, samples} has the reply {id, answer} or {id, failed}.

const vendor = new URL("./vendor/", import.meta.url);

async function load(about) {
  const ort = await import(new URL("ort.wasm.min.mjs", vendor).href);
  const threads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1; // else threads are not allowed
  ort.env.wasm.wasmPaths = vendor.href;
  ort.env.wasm.numThreads = threads;
  const file = new URL(`${encodeURIComponent(about.name)}.onnx`, vendor).href;
  const session = await ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
  self.postMessage({ threads });
  return { ort, session, about };
}

async function answer({ ort, session, about }, samples) {
  const names = about.images.map(({ name }) => name);
  const waveform = new ort.Tensor("float32", samples, [1, samples.length]);
  const found = await session.run({ waveform }, ["probabilities", "shown", ...names]);
  const images = names.map((name) => {
    const [, channels, height, width] = found[name].dims;
    return { values: found[name].data.slice(0, (found[name].data.length / channels) | 0), height, width };
  });
  return { scores: [...found.probabilities.data], shown: [...found.shown.data], images };
}

let loaded = null;
let last = null;

self.onmessage = ({ data }) => {
  if (!loaded) {
    last = loaded = load(data);
    loaded.catch((error) => self.postMessage({ failed: error.message }));
    return;
  }
  last = Promise.allSettled([last]).then(async () => {
    const { id, samples } = data;
    try {
      self.postMessage({ id, answer: await answer(await loaded, samples) });
    } catch (error) {
      self.postMessage({ id, failed: error.message });
    }
  });
};
