// Audio input: decodes and resamples files in the browser, records the microphone, and detects silence.

export const LONGEST_S = 15 * 60;
export const SHORTEST_S = 0.1;
const LARGEST_FILE = 200e6; // bytes
const SILENCE_DB = -60; // as in pipeline_maxmvit.py: without a louder frame, samples are silent
const SILENCE_FRAME_S = 0.05;
const CANCELLED_POWER = 1e-3; // of the channels' power, as in audio_maxmvit.py: they cancel if their mean has less
const MIN_POWER = 1e-6; // of full scale; quieter channels count as silent

// An error that the user can correct; the message says how.
export class AudioError extends Error {}

// Decodes a file to a Float32Array at `rate` Hz, the mean of its channels.
export async function decode(file, rate) {
  if (file.size > LARGEST_FILE) throw new AudioError(`${file.name} is over ${LARGEST_FILE / 1e6} MB; shorten it.`);
  let sound;
  try {
    sound = await new OfflineAudioContext(1, 1, rate).decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new AudioError(`${file.name} cannot be decoded by this browser: convert it to wav, mp3 or flac.`);
  }
  if (sound.duration > LONGEST_S) {
    throw new AudioError(`${file.name} exceeds the maximum of ${LONGEST_S / 60} minutes; shorten it.`);
  }
  const channels = Array.from({ length: sound.numberOfChannels }, (_, channel) => sound.getChannelData(channel));
  const mean = mixed(channels);
  if (!mean.every(Number.isFinite)) throw new AudioError(`${file.name} holds samples that are not numbers.`);
  const own = channels.reduce((sum, channel) => sum + power(channel), 0) / channels.length;
  if (own > MIN_POWER && power(mean) < CANCELLED_POWER * own) {
    throw new AudioError(`The channels of ${file.name} cancel each other out: invert one of them, or use only one.`);
  }
  return mean;
}

// Returns the mean of channels of equal length.
function mixed(channels) {
  if (channels.length === 1) return channels[0];
  return channels[0].map((_, at) => channels.reduce((sum, channel) => sum + channel[at], 0) / channels.length);
}

const power = (samples) => samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;

export async function resampled(samples, from, to) {
  if (from === to || !samples.length) return samples;
  const context = new OfflineAudioContext(1, Math.max(1, Math.round((samples.length * to) / from)), to);
  const buffer = new AudioBuffer({ length: samples.length, sampleRate: from });
  buffer.copyToChannel(samples, 0);
  const source = new AudioBufferSourceNode(context, { buffer });
  source.connect(context.destination);
  source.start();
  return (await context.startRendering()).getChannelData(0);
}

export function isSilent(samples, rate) {
  const frame = Math.max(1, Math.min(samples.length, Math.round(SILENCE_FRAME_S * rate)));
  let loudest = 0;
  for (let start = 0; start + frame <= samples.length; start += frame) {
    let power = 0;
    for (let at = start; at < start + frame; at++) power += samples[at] * samples[at];
    loudest = Math.max(loudest, power / frame);
  }
  return 10 * Math.log10(loudest + 1e-20) < SILENCE_DB;
}

// Records the microphone, at its own `rate`, from when it is opened.
export class Microphone {
  // `onSamples` is called for new samples. Throws AudioError if there is no microphone, or it may not be used.
  static async open(onSamples) {
    if (!navigator.mediaDevices) throw new AudioError("The microphone can be used on https pages and localhost only.");
    const wanted = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: wanted });
    } catch (error) {
      throw new AudioError(`The microphone cannot be used (${error.message}). Allow it for this page, or plug one in.`);
    }
    const context = new AudioContext();
    await context.resume(); // some browsers create it suspended
    await context.audioWorklet.addModule(new URL("./capture.js", import.meta.url));
    return new Microphone(stream, context, onSamples);
  }

  constructor(stream, context, onSamples) {
    this.stream = stream;
    this.context = context;
    this.rate = context.sampleRate;
    this.pieces = [];
    this.length = 0;
    const capture = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
    capture.port.onmessage = ({ data }) => {
      this.pieces.push(data);
      this.length += data.length;
      onSamples();
    };
    new MediaStreamAudioSourceNode(context, { mediaStream: stream }).connect(capture);
  }

  // Returns the samples from `start` to `end`, as far as they are recorded.
  between(start, end = this.length) {
    const found = new Float32Array(Math.max(0, end - start));
    let first = this.length;
    for (let index = this.pieces.length - 1; index >= 0 && first > start; index--) {
      const piece = this.pieces[index];
      first -= piece.length;
      const wanted = piece.subarray(Math.max(0, start - first), Math.max(0, end - first));
      found.set(wanted, Math.max(0, first - start));
    }
    return found;
  }

  async close() {
    for (const track of this.stream.getTracks()) track.stop();
    await this.context.close();
  }
}
