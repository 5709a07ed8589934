// Runs in the browser's audio thread: posts what the microphone records, in pieces of about 0.05 s.

const PIECE = 2048; // samples

class Capture extends AudioWorkletProcessor {
  piece = new Float32Array(PIECE);
  filled = 0;

  process([channels]) {
    if (!channels.length) return true; // nothing is connected yet
    for (let at = 0; at < channels[0].length; at++) {
      this.piece[this.filled++] = channels.reduce((sum, channel) => sum + channel[at], 0) / channels.length;
      if (this.filled === PIECE) {
        this.port.postMessage(this.piece.slice());
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);
