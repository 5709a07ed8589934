// Spectrograms and the timeline, on canvases that follow the page's width, its colours and the screen's resolution.

// Okabe and Ito's colours, which colour-blind people can distinguish, then some that are visible on dark pages too.
export const COLOURS = [
  "#d55e00", "#0072b2", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#9c7a00", "#7a52c7", "#a0a000", "#2f8f87",
];
// Evenly spaced colours of matplotlib's magma.
const MAGMA = [
  [0, 0, 4], [28, 16, 68], [79, 18, 123], [129, 37, 129], [181, 54, 122], [229, 80, 100], [251, 135, 97],
  [254, 194, 135], [252, 253, 191],
];
const STEPS_S = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300];
const FONT = "12px system-ui, sans-serif";

// Returns a function that redraws `canvas` with `draw(context, width, height)`, and calls it when the size or the
// page's colours change.
export function keepDrawn(canvas, draw) {
  const redraw = () => {
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width) return; // it is hidden
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    context.font = FONT;
    context.fillStyle = context.strokeStyle = getComputedStyle(canvas).color;
    draw(context, width, height);
  };
  new ResizeObserver(redraw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  document.addEventListener("themechange", redraw);
  return redraw;
}

// `image`: {values, height, width}, lowest frequency first; `about`: its entry in models.json; `from`, `to`: seconds.
export function drawSpectrogram(context, width, height, { image, about, from, to }) {
  const plot = { left: 52, top: 22, right: width - 16, bottom: height - 40 };
  const bitmap = new OffscreenCanvas(image.width, image.height);
  const pixels = new ImageData(image.width, image.height);
  image.values.forEach((value, at) => {
    const row = image.height - 1 - Math.floor(at / image.width);
    const place = row * image.width + (at % image.width);
    pixels.data.set([...magma(value * about.std + about.mean), 255], 4 * place);
  });
  bitmap.getContext("2d").putImageData(pixels, 0, 0);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, plot.left, plot.top, plot.right - plot.left, plot.bottom - plot.top);
  drawSeconds(context, plot, from, to);
  drawHeights(context, plot, "Hz", about.ticks);
}

// `rows`: [{from, to, scores}] in seconds, with scores null for silence.
export function drawTimeline(context, width, height, { rows, seconds }) {
  const plot = { left: 44, top: 22, right: width - 16, bottom: height - 40 };
  const x = (time) => Math.round(plot.left + (time / seconds) * (plot.right - plot.left));
  const ink = context.fillStyle;
  for (const { from, to, scores } of rows) {
    const left = x(from);
    const thick = x(to) - left;
    if (scores === null) {
      context.globalAlpha = 0.15;
      context.fillRect(left, plot.top, thick, plot.bottom - plot.top);
      context.globalAlpha = 1;
      continue;
    }
    let bottom = plot.bottom;
    scores.forEach((score, index) => {
      const tall = score * (plot.bottom - plot.top);
      context.fillStyle = COLOURS[index % COLOURS.length];
      context.fillRect(left, bottom - tall, thick, tall);
      bottom -= tall;
    });
    context.fillStyle = ink;
  }
  drawSeconds(context, plot, 0, seconds);
  drawHeights(context, plot, "score", [[0, 0], [0.5, 0.5], [1, 1]]);
}

export function clock(seconds) {
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

// `ticks`: [[label, position as a share of the height], ...], from below.
function drawHeights(context, plot, title, ticks) {
  context.textAlign = "right";
  context.textBaseline = "middle";
  let last = Infinity;
  for (const [value, share] of ticks) {
    const y = plot.bottom - share * (plot.bottom - plot.top);
    if (last - y < 12) continue; // its label would touch the one below
    context.fillRect(plot.left - 5, y, 5, 1);
    context.fillText(value.toLocaleString("en"), plot.left - 8, y);
    last = y;
  }
  context.fillText(title, plot.left - 8, 7);
}

function drawSeconds(context, plot, from, to) {
  const room = Math.min(10, Math.floor((plot.right - plot.left) / 40)); // ticks whose labels do not touch
  const step = STEPS_S.find((candidate) => (to - from) / candidate <= room) ?? STEPS_S.at(-1);
  context.strokeRect(plot.left - 0.5, plot.top - 0.5, plot.right - plot.left + 1, plot.bottom - plot.top + 1);
  context.textAlign = "center";
  context.textBaseline = "top";
  const decimals = step < 1 ? 1 : 0;
  for (let tick = Math.ceil(from / step - 1e-6); tick * step <= to + 1e-6; tick++) {
    const x = plot.left + ((tick * step - from) / (to - from)) * (plot.right - plot.left);
    context.fillRect(x, plot.bottom, 1, 5);
    context.fillText(step >= 15 ? clock(tick * step) : (tick * step).toFixed(decimals), x, plot.bottom + 8);
  }
  context.textAlign = "right";
  context.fillText(step >= 15 ? "minutes" : "seconds", plot.right, plot.bottom + 24);
}

function magma(level) {
  const place = Math.min(1, Math.max(0, level)) * (MAGMA.length - 1);
  const below = Math.min(MAGMA.length - 2, Math.floor(place));
  return MAGMA[below].map((value, part) => value + (place - below) * (MAGMA[below + 1][part] - value));
}
