// The page: takes files and microphone input, and shows the predictions.

import { toCsv, toSrt, toTextGrid } from "./annotations.js";
import { AudioError, LONGEST_S, Microphone, SHORTEST_S, decode, isSilent, resampled } from "./audio.js";
import { COLOURS, clock, drawSpectrogram, drawTimeline, keepDrawn } from "./drawing.js";
import { Recognizer } from "./recognizer.js";

const HOP_S = 0.5; // from one window to the next for the microphone
const WRITERS = { TextGrid: toTextGrid, srt: toSrt, csv: toCsv };
const LIVE_S = 10; // minimum length of the timeline, so that it does not shrink with every window

const element = (id) => document.getElementById(id);
const timeline = { name: "", rows: [], seconds: 0 };
const controls = [element("file"), element("speak"), element("model")];
let models; // models.json
let about; // the entry of the model that is loaded
let recognizer = null;
let turn = 0; // results for an earlier turn are dropped
let microphone = null;
let canvases = []; // of the images: {entry, figure, canvas, shown, redraw}

const redrawTimeline = keepDrawn(element("timeline"), (...canvas) => drawTimeline(...canvas, timeline));

function say(text, isAlarm = false) {
  element("status").textContent = text;
  element("status").classList.toggle("alarm", isAlarm);
}

function alarm(error) {
  say(error.message, true);
  if (!(error instanceof AudioError)) console.error(error);
}

function build() {
  for (const id of ["scores", "legend", "images"]) element(id).replaceChildren();
  about.labels.forEach((label, index) => {
    const row = document.createElement("li");
    row.dataset.label = label;
    row.style.setProperty("--colour", COLOURS[index % COLOURS.length]);
    for (const [tag, text] of [["span", label], ["div", ""], ["span", "–"]]) {
      row.append(Object.assign(document.createElement(tag), { textContent: text }));
    }
    row.children[1].className = "bar";
    element("scores").append(row);
    const colour = Object.assign(document.createElement("li"), { textContent: label });
    colour.style.setProperty("--colour", COLOURS[index % COLOURS.length]);
    element("legend").append(colour);
  });
  element("legend").append(Object.assign(document.createElement("li"), { textContent: "silence" }));
  canvases = about.images.map((entry) => {
    const figure = document.createElement("figure");
    const caption = Object.assign(document.createElement("figcaption"), { textContent: entry.title });
    const canvas = Object.assign(document.createElement("canvas"), { role: "img" });
    figure.append(caption, canvas);
    element("images").append(figure);
    const kept = { entry, figure, canvas, shown: null };
    kept.redraw = keepDrawn(canvas, (...at) => kept.shown && drawSpectrogram(...at, { ...kept.shown, about: entry }));
    return kept;
  });
  element("licence").textContent = `Weights: ${about.licence}.`;
  clear();
}

function clear(seconds = 0) {
  Object.assign(timeline, { rows: [], seconds });
  element("along").hidden = element("downloads").hidden = true;
  for (const { figure } of canvases) figure.hidden = true;
  showScores(null);
}

const likeliest = (scores) => scores.indexOf(Math.max(...scores));

// Shows scores by label, or `instead` if they are null.
function showScores(scores, instead = "No result yet") {
  const best = scores ? likeliest(scores) : -1;
  element("best").textContent = scores ? about.labels[best] : instead;
  element("best").classList.toggle("none", !scores);
  [...element("scores").children].forEach((row, index) => {
    row.classList.toggle("best", index === best);
    row.dataset.score = scores ? scores[index] : "";
    row.children[1].style.setProperty("--share", scores ? scores[index] : 0);
    row.children[2].textContent = scores ? `${Math.round(100 * scores[index])} %` : "–";
  });
}

// `start`: start of the clip in its recording, in seconds.
function showImages({ images, shown }, start) {
  canvases.forEach((kept, index) => {
    const [from, to] = shown.map((seconds) => start + seconds);
    kept.shown = { image: images[index], from, to };
    kept.figure.hidden = false;
    kept.canvas.setAttribute("aria-label", `${kept.entry.title}, ${from.toFixed(1)} to ${to.toFixed(1)} seconds`);
    kept.redraw();
  });
}

// Adds the window from `start` to `end`, which is drawn from the end of the previous one on.
function addToTimeline(start, end, scores) {
  const from = timeline.rows.at(-1)?.to ?? 0;
  timeline.rows.push({ from, to: end, start, end, scores });
  timeline.seconds = Math.max(timeline.seconds, end);
  element("along").hidden = false;
  const names = timeline.rows.slice(-20).map((row) => (row.scores ? about.labels[likeliest(row.scores)] : "silence"));
  element("timeline").dataset.rows = timeline.rows.length;
  element("timeline").setAttribute("aria-label", `Most likely label of the last windows: ${names.join(", ")}`);
  redrawTimeline();
}

// Returns the model's output for `samples`, or null if they are silent.
function classify(samples) {
  return isSilent(samples, about.samplingRate) ? null : recognizer.answer(samples);
}

async function classifyRecording(name, samples) {
  const mine = ++turn;
  const seconds = samples.length / about.samplingRate;
  clear();
  if (seconds < SHORTEST_S) throw new AudioError(`${name} is shorter than ${SHORTEST_S} seconds.`);
  if (isSilent(samples, about.samplingRate)) throw new AudioError(`${name} is silent from beginning to end.`);
  // As in pipeline_maxmvit.py, a recording up to the length of the longest training clip is one clip.
  if (samples.length > Math.ceil(about.maxClipS * about.samplingRate)) return classifyInWindows(mine, name, samples);
  say(`${name}: classifying …`);
  const answer = await recognizer.answer(samples);
  if (mine !== turn) return;
  showScores(answer.scores);
  showImages(answer, 0);
  say(`${name}: ${clock(seconds)} of speech, classified as one clip.`);
}

// Classifies the windows of a recording one by one and averages their scores; the last window ends with the recording.
async function classifyInWindows(mine, name, samples) {
  const { samplingRate: rate, windowS } = about;
  const size = Math.round(windowS * rate);
  const count = Math.ceil((samples.length - size) / (windowS * rate) - 1e-6) + 1;
  const sum = about.labels.map(() => 0);
  let classified = 0;
  element("rule").textContent = `windows of ${windowS} s`;
  timeline.seconds = samples.length / rate;
  for (let step = 0; step < count; step++) {
    say(`${name}: window ${step + 1} of ${count} …`);
    const start = Math.min(Math.round(step * windowS * rate), samples.length - size);
    const answer = await classify(samples.slice(start, start + size));
    if (mine !== turn) return;
    addToTimeline(start / rate, (start + size) / rate, answer?.scores ?? null);
    if (!answer) continue;
    answer.scores.forEach((score, index) => (sum[index] += score));
    classified += 1;
    showScores(sum.map((score) => score / classified));
    showImages(answer, start / rate);
  }
  if (!classified) throw new AudioError(`${name} is silent from beginning to end.`);
  timeline.name = name.replace(/\.[^.]*$/, "");
  element("downloads").hidden = false;
  const silent = classified < count ? ` (${count - classified} more are silent)` : "";
  const windows = classified > 1 ? `the mean over ${classified} windows` : "that of one window";
  say(`${name}: ${clock(timeline.seconds)} of speech. The result is ${windows} of ${windowS} s${silent}.`);
}

function download(suffix) {
  const content = WRITERS[suffix](timeline.rows, about.labels);
  const href = URL.createObjectURL(new Blob([content], { type: "text/plain" }));
  Object.assign(document.createElement("a"), { href, download: `${timeline.name}_emotions.${suffix}` }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}

async function takeFile(file) {
  if (microphone) await stopSpeaking();
  const mine = ++turn;
  clear();
  say(`${file.name}: decoding …`);
  const samples = await decode(file, about.samplingRate);
  if (mine === turn) await classifyRecording(file.name, samples);
}

async function startSpeaking() {
  const mine = ++turn;
  clear(LIVE_S);
  let classified = 0; // half seconds
  let isClassifying = false;
  const opened = await Microphone.open(async () => {
    const reached = Math.floor(opened.length / opened.rate / HOP_S);
    if (mine !== turn || reached === classified || isClassifying) return; // a slow machine skips half seconds
    classified = reached;
    isClassifying = true;
    await classifyLatest(mine, opened, reached * HOP_S).catch(alarm);
    isClassifying = false;
    if (reached * HOP_S >= LONGEST_S && mine === turn) await speakOrStop().catch(alarm);
  });
  if (mine !== turn) return opened.close();
  microphone = opened;
  element("rule").textContent = `every half second: the last ${about.windowS} s`;
  showButton();
  say("Recording …");
}

// Classifies the window of the microphone's recording that ends at `seconds`.
async function classifyLatest(mine, opened, seconds) {
  const start = Math.max(0, seconds - about.windowS);
  const latest = opened.between(Math.round(start * opened.rate), Math.round(seconds * opened.rate));
  const answer = await classify(await resampled(latest, opened.rate, about.samplingRate));
  if (mine !== turn) return;
  addToTimeline(start, seconds, answer?.scores ?? null);
  showScores(answer?.scores ?? null, "silence");
  if (answer) showImages(answer, start);
  say(`${clock(seconds)} ${answer ? "Recording …" : "Silence."}`);
}

async function stopSpeaking() {
  const stopped = microphone;
  microphone = null;
  showButton();
  await stopped.close();
  return resampled(stopped.between(0), stopped.rate, about.samplingRate);
}

function showButton() {
  element("speak").setAttribute("aria-pressed", Boolean(microphone));
  element("speak").lastElementChild.textContent = microphone ? "Stop" : "Speak";
}

async function speakOrStop() {
  if (!microphone) return startSpeaking();
  return classifyRecording("Your recording", await stopSpeaking());
}

async function load(index) {
  ++turn;
  for (const control of controls) control.disabled = true;
  if (microphone) await stopSpeaking();
  say("Loading the model …");
  recognizer?.close();
  about = models[index];
  recognizer = new Recognizer(about);
  try {
    const { threads } = await recognizer.loaded;
    document.body.dataset.threads = threads;
  } finally {
    element("model").disabled = false; // another model may load
  }
  build();
  for (const control of controls) control.disabled = false;
  say("Ready.");
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function changeTheme() {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  element("theme").textContent = isDark() ? "Light" : "Dark";
  document.dispatchEvent(new Event("themechange"));
}

function listen() {
  const drop = element("drop");
  const take = (files) => files.length && takeFile(files[0]).catch(alarm);
  element("file").addEventListener("change", ({ target }) => {
    take([...target.files]);
    target.value = ""; // the same file may be chosen again
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", () => drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take([...event.dataTransfer.files]);
  });
  element("downloads").addEventListener("click", ({ target }) => target.dataset.suffix && download(target.dataset.suffix));
  element("speak").addEventListener("click", () => speakOrStop().catch(alarm));
  element("model").addEventListener("change", ({ target }) => load(Number(target.value)).catch(alarm));
}

element("theme").addEventListener("click", changeTheme);
element("theme").textContent = isDark() ? "Light" : "Dark";
for (const control of controls) control.disabled = true;
try {
  const response = await fetch(new URL("./vendor/models.json", import.meta.url));
  if (!response.ok) throw new Error("The models are missing in the folder vendor: run python -m web.build.");
  models = await response.json();
  models.forEach(({ name, megabytes }, index) => element("model").append(new Option(`${name} (${megabytes} MB)`, index)));
  element("choice").hidden = models.length < 2;
  await load(0);
  listen();
} catch (error) {
  alarm(error);
}
