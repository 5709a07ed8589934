// The model, in a thread of its own so that the page stays awake. Says {about, threads} or {failed} once; then answers
// each {id, samples} with {id, answer} or {id, failed}, in turn.

const vendor = new URL("./vendor/", import.meta.url);

async function load() {
  const response = await fetch(new URL("model.json", vendor));
  if (!response.ok) throw new Error("The folder vendor lacks the model: run python -m web.build.");
  const about = await response.json();
  const ort = await import(new URL("ort.wasm.min.mjs", vendor).href);
  const threads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1; // else none are allowed
  ort.env.wasm.wasmPaths = vendor.href;
  ort.env.wasm.numThreads = threads;
  const session = await ort.InferenceSession.create(new URL("model.onnx", vendor).href, { executionProviders: ["wasm"] });
  self.postMessage({ about, threads });
  return { ort, session, about };
}

async function answer({ ort, session, about }, samples) {
  const names = about.pictures.map(({ name }) => name);
  const waveform = new ort.Tensor("float32", samples, [1, samples.length]);
  const found = await session.run({ waveform }, ["probabilities", "shown", ...names]);
  const pictures = names.map((name) => {
    const [, channels, height, width] = found[name].dims;
    return { values: found[name].data.slice(0, (found[name].data.length / channels) | 0), height, width };
  });
  return { scores: [...found.probabilities.data], shown: [...found.shown.data], pictures };
}

const loaded = load();
loaded.catch((error) => self.postMessage({ failed: error.message }));
let last = loaded;

self.onmessage = ({ data: { id, samples } }) => {
  last = Promise.allSettled([last]).then(async () => {
    try {
      self.postMessage({ id, answer: await answer(await loaded, samples) });
    } catch (error) {
      self.postMessage({ id, failed: error.message });
    }
  });
};
