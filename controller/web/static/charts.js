// What each chart of a page draws, and where its numbers come from.

import { Plot } from "./plot.js";

const DASHES = [[], [6, 4], [2, 3], [10, 4, 2, 4], [1, 5], [12, 6]];
const COLOURS = ["accent", "discard", "keep", "reject", "crash", "open"];

const bpb = (value) => value.toFixed(6);

function progress(told) {
  const marks = { x: [], y: [], kind: [] };
  const failed = { x: [], kind: [] };
  const kept = [];
  told.bpb.forEach((score, number) => {
    const kind = told.kinds[Number(told.kind[number])];
    if (score !== null) {
      marks.x.push(number);
      marks.y.push(score);
      marks.kind.push(kind);
      if (kind === "keep") kept.push(score);
    } else if (kind === "crash" || kind === "reject") {
      failed.x.push(number);
      failed.kind.push(kind);
    }
  });
  const end = Math.max(told.bpb.length - 1, 1);
  return {
    marks,
    failed,
    steps: [
      { points: told.frontier, colour: "keep", dash: [], end },
      { points: told.certified, colour: "replicate", dash: [7, 5], end },
    ],
    lines: [],
    whole: [-0.5, end + 0.5],
    integers: true,
    xName: "experiment",
    format: bpb,
    describe: (number, score, kind) => `#${number} ${kind}${score === null ? "" : ` ${bpb(score)}`}`,
    open: (number) => location.assign(`/experiments/${number}`),
  };
}

function losses(told) {
  const lines = told.runs.map((run, place) => ({
    name: `#${run.number}`,
    points: run.points.map(([share, loss]) => [100 * share, loss]),
    colour: COLOURS[place % COLOURS.length],
    dash: DASHES[place % DASHES.length],
  }));
  return {
    marks: { x: [], y: [], kind: [] },
    failed: { x: [], kind: [] },
    steps: [],
    lines,
    whole: [0, 100],
    xName: "% of the budget",
    format: (value) => value.toFixed(4),
    describe: (share, loss, name) => `${name} at ${share.toFixed(0)} %: ${loss.toFixed(4)}`,
  };
}

function both(told) {
  const column = (place) => told.both.map((row) => [row[0], row[place]]);
  const end = Math.max(told.bpb.length - 1, 1);
  return {
    marks: { x: [], y: [], kind: [] },
    failed: { x: [], kind: [] },
    steps: [],
    lines: [
      { name: "validation", points: column(1), colour: "keep", dash: [] },
      { name: "hold-out", points: column(2), colour: "reject", dash: [6, 4], errors: told.both.map((row) => row[3]) },
    ],
    whole: [0, end],
    integers: true,
    xName: "experiment",
    format: bpb,
    describe: (number, gain, name) => `#${number} ${name} ${gain >= 0 ? "+" : "−"}${Math.abs(gain).toFixed(4)}`,
  };
}

const KINDS = { progress, losses, both };

// Draw every chart that is not drawn yet, and again whenever the page was updated.
export function wire() {
  for (const figure of document.querySelectorAll("[data-chart]")) {
    if (figure.plot) continue;
    figure.plot = new Plot(figure);
    load(figure);
  }
}

async function load(figure) {
  if (figure.loading) {
    figure.again = true;
    return;
  }
  figure.loading = true;
  try {
    const answer = await fetch(figure.dataset.source);
    if (answer.ok) figure.plot.show(KINDS[figure.dataset.chart](await answer.json()));
  } catch {
    // the next update tries again
  } finally {
    figure.loading = false;
  }
  if (figure.again) {
    figure.again = false;
    load(figure);
  }
}

document.addEventListener("updated", () => {
  for (const figure of document.querySelectorAll("[data-chart]")) load(figure);
});
