// Writes the predictions along a recording as CSV, TextGrid and SRT: the files that app.py offers for the same rows.
// Rows are the windows of a recording in order: {start, end, scores}, in seconds, with null scores for silence.

// Rounds like Python: to the even digit if the value is exactly in the middle, where toFixed rounds up.
export function fixed(value, digits) {
  const text = value.toFixed(digits);
  const longer = value.toFixed(digits + 1);
  const isMiddle = longer.endsWith("5") && Number.isInteger(value * 2 ** (digits + 1));
  return isMiddle && Number(text.at(-1)) % 2 ? longer.slice(0, -1) : text;
}

const rounded = (seconds) => Number(fixed(seconds, 3));

const labelOf = (scores, labels) => (scores ? labels[scores.indexOf(Math.max(...scores))] : "silence");

export function toCsv(rows, labels) {
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const decimal = (value) => (Number.isInteger(value) ? `${value}.0` : String(value));
  const lines = rows.map(({ start, end, scores }) => [
    decimal(rounded(start)), decimal(rounded(end)), labelOf(scores, labels),
    ...labels.map((_, index) => (scores ? fixed(scores[index], 6) : "")),
  ]);
  return [["start", "end", "label", ...labels], ...lines].map((line) => `${line.map(quoted).join(",")}\r\n`).join("");
}

// Joins neighbouring windows of one label: {start, end, label, score}, the mean score. Silence has none. Each window
// stands for the time that is nearer to its middle than to that of any other.
export function annotationsOf(rows, labels) {
  const windows = rows.map(({ start, end, scores }) => ({ start: rounded(start), end: rounded(end), scores }));
  const middles = windows.map(({ start, end }) => (start + end) / 2);
  const found = [];
  windows.forEach(({ start, end, scores }, index) => {
    const label = labelOf(scores, labels);
    const to = index + 1 < windows.length ? (middles[index] + middles[index + 1]) / 2 : end;
    if (found.at(-1)?.label !== label) found.push({ start: found.at(-1)?.end ?? start, end: to, label, scores: [] });
    found.at(-1).end = to;
    if (scores) found.at(-1).scores.push(Math.max(...scores));
  });
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  return found.filter(({ scores }) => scores.length).map((each) => ({ ...each, score: mean(each.scores) }));
}

export function toTextGrid(rows, labels) {
  const found = annotationsOf(rows, labels).filter(({ start, end }) => start < end);
  const seconds = (value) =>
    String(Math.abs(value - Math.trunc(value)) <= 1e-14 * Math.abs(value) ? Math.trunc(value) : value);
  const last = Math.max(...found.map(({ end }) => end));
  const tiers = { emotion: ({ label }) => label, score: ({ score }) => fixed(score, 3) };
  const lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0 ", `xmax = ${seconds(last)} `,
    "tiers? <exists> ", "size = 2 ", "item []: "];
  Object.entries(tiers).forEach(([name, textOf], number) => {
    const intervals = [];
    let reached = 0;
    for (const each of found) {
      if (reached < each.start) intervals.push([reached, each.start, ""]);
      intervals.push([each.start, each.end, textOf(each)]);
      reached = each.end;
    }
    lines.push(`    item [${number + 1}]:`, '        class = "IntervalTier" ', `        name = "${name}" `,
      "        xmin = 0 ", `        xmax = ${seconds(last)} `, `        intervals: size = ${intervals.length} `);
    intervals.forEach(([start, end, text], index) => {
      lines.push(`        intervals [${index + 1}]:`, `            xmin = ${seconds(start)} `,
        `            xmax = ${seconds(end)} `, `            text = "${text.replaceAll('"', '""')}" `);
    });
  });
  return `${lines.join("\n")}\n`;
}

export function toSrt(rows, labels) {
  const clock = (seconds) => {
    const thousandths = Number(fixed(1000 * seconds, 0));
    const parts = [3_600_000, 60_000, 1000].map((unit, index) =>
      String(Math.floor(thousandths / unit) % (index ? 60 : Infinity)).padStart(2, "0"));
    return `${parts.join(":")},${String(thousandths % 1000).padStart(3, "0")}`;
  };
  return annotationsOf(rows, labels)
    .map(({ start, end, label }, index) => `${index + 1}\n${clock(start)} --> ${clock(end)}\n${label}\n\n`)
    .join("");
}
