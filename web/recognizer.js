// Sends recordings to the model's worker thread.

export class Recognizer {
  // `about`: the model's entry in models.json.
  constructor(about) {
    this.waiting = new Map(); // id -> {resolve, reject}
    this.asked = 0;
    this.worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.loaded = new Promise((resolve, reject) => {
      this.worker.onmessage = ({ data }) => {
        const { resolve: done, reject: failed } = this.waiting.get(data.id) ?? { resolve, reject };
        this.waiting.delete(data.id);
        if (data.failed) failed(new Error(data.failed));
        else done(data.answer ?? data);
      };
      this.worker.onerror = (event) => reject(new Error(event.message || "The model's thread cannot be started."));
    });
    this.worker.postMessage(about);
  }

  // Classifies a Float32Array at the model's rate. Resolves to {scores, shown: [from, to] in seconds, images: [{values,
  // height, width}]}.
  answer(samples) {
    const id = ++this.asked;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.worker.postMessage({ id, samples });
    });
  }

  // Frees the memory of the model; pending requests get no answer.
  close() {
    this.worker.terminate();
  }
}
