// A chart on a canvas: points, staircases and lines; to be zoomed by wheel, mouse, buttons and keys.

const MARGIN = { left: 76, right: 26, top: 24, bottom: 38 };
const REACH = 18; // pixels within which the pointer finds a point
const STEP = 0.25; // of the width, for each press of an arrow button
const HOLD = 5; // pixels from which a press is a selection

export class Plot {
  constructor(figure) {
    this.frame = figure.querySelector(".plot");
    this.canvas = figure.querySelector("canvas");
    this.readout = figure.querySelector(".readout");
    this.data = null;
    this.view = null; // [first, last] of what is shown; null: everything
    this.chosen = null; // the point that the pointer or the keys are on
    this.selection = null;
    this.waiting = false;
    new ResizeObserver(() => this.draw()).observe(this.frame);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.listen(figure);
  }

  show(data) {
    this.data = data;
    this.points = everyPoint(data);
    this.draw();
  }

  draw() {
    if (this.waiting || !this.data) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.paint();
    });
  }

  // --- what is shown ---------------------------------------------------------------------------------------

  range() {
    return this.view ?? this.data.whole;
  }

  zoom(factor, around) {
    const [first, last] = this.range();
    const middle = around ?? (first + last) / 2;
    this.look(middle - (middle - first) * factor, middle + (last - middle) * factor);
  }

  shift(share) {
    const [first, last] = this.range();
    const [least, most] = this.data.whole;
    const way = Math.min(Math.max(share * (last - first), least - first), most - last);
    this.look(first + way, last + way);
  }

  look(first, last) {
    const [least, most] = this.data.whole;
    first = Math.max(first, least);
    last = Math.min(last, most);
    const smallest = this.data.integers ? 4 : (most - least) / 200;
    if (last - first < smallest) {
      const middle = Math.min(Math.max((first + last) / 2, least + smallest / 2), most - smallest / 2);
      [first, last] = [Math.max(least, middle - smallest / 2), Math.min(most, middle + smallest / 2)];
    }
    this.view = first <= least && last >= most ? null : [first, last];
    this.draw();
  }

  reset() {
    this.view = null;
    this.draw();
  }

  // --- painting --------------------------------------------------------------------------------------------

  paint() {
    const { width, height } = this.frame.getBoundingClientRect();
    if (!width || !height) return;
    const scale = devicePixelRatio || 1;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    const [first, last] = this.range();
    const [low, high] = limits(this.data, this.points, first, last);
    this.box = { x: MARGIN.left, y: MARGIN.top, width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
    this.across = (x) => this.box.x + ((x - first) / (last - first)) * this.box.width;
    this.up = (y) => this.box.y + this.box.height - ((y - low) / (high - low)) * this.box.height;
    this.high = high;
    const colours = palette();
    this.grid(pen, colours, [first, last], [low, high]);
    pen.save();
    pen.beginPath();
    pen.rect(this.box.x - 6, 0, this.box.width + 12, this.box.y + this.box.height + 6);
    pen.clip();
    this.scatter(pen, colours, first, last);
    for (const steps of this.data.steps) this.staircase(pen, colours, steps);
    this.named = [];
    for (const line of this.data.lines) this.line(pen, colours, line);
    this.cursor(pen, colours);
    pen.restore();
    this.frame.dataset.drawn = `${first} ${last}`;
  }

  grid(pen, colours, [first, last], [low, high]) {
    const { x, y, width, height } = this.box;
    pen.lineWidth = 1;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const [value, words] of ticks(low, high, Math.max(2, Math.floor(height / 40)), false)) {
      const place = Math.round(this.up(value)) + 0.5;
      pen.strokeStyle = colours.line;
      pen.beginPath();
      pen.moveTo(x, place);
      pen.lineTo(x + width, place);
      pen.stroke();
      pen.fillStyle = colours.quiet;
      pen.fillText(words, x - 10, place);
    }
    pen.textAlign = "center";
    pen.textBaseline = "top";
    for (const [value, words] of ticks(first, last, Math.max(2, Math.floor(width / 90)), this.data.integers)) {
      pen.fillText(words, this.across(value), y + height + 8);
    }
    pen.textAlign = "right";
    pen.fillText(this.data.xName, x + width, y + height + 24);
  }

  scatter(pen, colours, first, last) {
    const { x, y, kind } = this.data.marks;
    const size = Math.min(4, Math.max(2.2, (this.box.width / (last - first)) * 0.5));
    for (const wanted of ["discard", "open", "replicate", "reject", "crash", "keep"]) {
      pen.beginPath();
      for (let place = 0; place < x.length; place += 1) {
        if (kind[place] !== wanted || x[place] < first || x[place] > last) continue;
        const beyond = y[place] > this.high;
        trace(pen, beyond ? "beyond" : wanted, this.across(x[place]), beyond ? this.box.y : this.up(y[place]), wanted === "keep" ? size + 1.5 : size);
      }
      finish(pen, wanted, colours);
    }
    for (const wanted of ["crash", "reject"]) {
      pen.beginPath();
      this.data.failed.x.forEach((number, place) => {
        if (this.data.failed.kind[place] === wanted && number >= first && number <= last) {
          trace(pen, wanted, this.across(number), this.box.y - 13, Math.max(size, 3));
        }
      });
      finish(pen, wanted, colours);
    }
  }

  staircase(pen, colours, { points, colour, dash, end }) {
    if (!points.length) return;
    pen.beginPath();
    points.forEach(([number, score], place) => {
      if (place === 0) pen.moveTo(this.across(number), this.up(score));
      else {
        pen.lineTo(this.across(number), this.up(points[place - 1][1]));
        pen.lineTo(this.across(number), this.up(score));
      }
    });
    pen.lineTo(this.across(Math.max(end, points.at(-1)[0])), this.up(points.at(-1)[1]));
    stroke(pen, colours[colour], 2, dash);
  }

  line(pen, colours, { name, points, colour, dash, errors }) {
    if (!points.length) return;
    if (errors) {
      pen.beginPath();
      points.forEach(([x, y], place) => {
        pen.moveTo(this.across(x), this.up(y - errors[place]));
        pen.lineTo(this.across(x), this.up(y + errors[place]));
      });
      pen.globalAlpha = 0.45;
      stroke(pen, colours[colour], 1, []);
      pen.globalAlpha = 1;
    }
    pen.beginPath();
    points.forEach(([x, y], place) => (place ? pen.lineTo(this.across(x), this.up(y)) : pen.moveTo(this.across(x), this.up(y))));
    if (points.length === 1) pen.arc(this.across(points[0][0]), this.up(points[0][1]), 2, 0, 7);
    stroke(pen, colours[colour], 2, dash);
    const [x, y] = points.at(-1);
    const inside = this.across(x) + pen.measureText(name).width + 8 < this.box.x + this.box.width;
    pen.textAlign = inside ? "left" : "right";
    pen.textBaseline = "bottom";
    pen.fillStyle = colours[colour];
    const left = this.across(x);
    let top = Math.min(this.up(y), this.box.y + this.box.height) - 4;
    while (this.named.some((other) => Math.abs(other.left - left) < 60 && Math.abs(other.top - top) < 14)) top -= 14;
    this.named.push({ left, top });
    pen.fillText(name, left + (inside ? 5 : 0), top);
  }

  cursor(pen, colours) {
    if (this.selection) {
      const [from, to] = this.selection;
      pen.fillStyle = colours.accent;
      pen.globalAlpha = 0.15;
      pen.fillRect(Math.min(from, to), this.box.y, Math.abs(to - from), this.box.height);
      pen.globalAlpha = 1;
    }
    const point = this.chosen !== null ? this.points[this.chosen] : null;
    if (!point) return;
    pen.beginPath();
    pen.arc(this.across(point.x), this.height(point), 9, 0, 7);
    stroke(pen, colours.ink, 1.5, []);
  }

  height(point) {
    if (point.y === null) return this.box.y - 13;
    return point.y > this.high ? this.box.y : this.up(point.y);
  }

  // --- pointer and keys ------------------------------------------------------------------------------------

  choose(place) {
    this.chosen = place;
    const point = place === null ? null : this.points[place];
    this.readout.textContent = point ? this.data.describe(point.x, point.y, point.kind) : "";
    this.frame.dataset.chosen = point ? String(point.x) : "";
    this.draw();
  }

  nearest(left, top) {
    let found = null;
    let least = REACH * REACH;
    this.points.forEach((point, place) => {
      const distance = (this.across(point.x) - left) ** 2 + (this.height(point) - top) ** 2;
      if (distance < least) [found, least] = [place, distance];
    });
    return found;
  }

  value(left) {
    const [first, last] = this.range();
    return first + ((left - this.box.x) / this.box.width) * (last - first);
  }

  listen(figure) {
    const actions = { in: () => this.zoom(0.5), out: () => this.zoom(2), left: () => this.shift(-STEP), right: () => this.shift(STEP), reset: () => this.reset() };
    for (const button of figure.querySelectorAll("[data-do]")) {
      button.addEventListener("click", () => this.data && actions[button.dataset.do]());
    }
    this.frame.addEventListener("keydown", (event) => this.key(event));
    this.frame.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.frame.addEventListener("pointerdown", (event) => this.press(event));
    this.frame.addEventListener("pointermove", (event) => this.move(event));
    this.frame.addEventListener("pointerup", (event) => this.release(event));
    this.frame.addEventListener("pointercancel", () => this.release(null));
    this.frame.addEventListener("pointerleave", () => this.selection || this.choose(null));
  }

  // Without the focus or a modifier the wheel scrolls the page, as everywhere.
  wheel(event) {
    if (!this.box || !(event.ctrlKey || event.metaKey || document.activeElement === this.frame)) return;
    event.preventDefault();
    this.zoom(event.deltaY > 0 ? 1.25 : 0.8, this.value(event.offsetX));
  }

  press(event) {
    if (this.box && event.pointerType === "mouse" && event.button === 0) {
      this.selection = [event.offsetX, event.offsetX];
      this.frame.setPointerCapture(event.pointerId);
    }
  }

  move(event) {
    if (!this.box) return;
    if (this.selection) {
      this.selection[1] = event.offsetX;
      this.draw();
    } else this.choose(this.nearest(event.offsetX, event.offsetY));
  }

  release(event) {
    const selection = this.selection;
    this.selection = null;
    if (!event || !this.box) return;
    if (selection && Math.abs(selection[1] - selection[0]) > HOLD) {
      const [from, to] = selection.map((left) => this.value(left)).sort((a, b) => a - b);
      this.look(from, to);
      return;
    }
    const place = this.nearest(event.offsetX, event.offsetY);
    this.choose(place);
    if (place !== null && this.data.open) this.data.open(this.points[place].x);
  }

  key(event) {
    if (!this.box || event.ctrlKey || event.metaKey || event.altKey) return;
    const go = (place) => this.walk(Math.min(Math.max(place, 0), this.points.length - 1));
    const at = this.chosen ?? -1;
    const actions = {
      ArrowRight: () => go(at + 1),
      ArrowLeft: () => go(this.chosen === null ? this.points.length - 1 : at - 1),
      Home: () => go(0),
      End: () => go(this.points.length - 1),
      "+": () => this.zoom(0.5, this.points[this.chosen]?.x),
      "=": () => this.zoom(0.5, this.points[this.chosen]?.x),
      "-": () => this.zoom(2, this.points[this.chosen]?.x),
      0: () => this.reset(),
      Enter: () => this.chosen !== null && this.data.open?.(this.points[this.chosen].x),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }

  // To a point, which comes into view if it was not.
  walk(place) {
    if (!this.points.length) return;
    const { x } = this.points[place];
    const [first, last] = this.range();
    if (x < first || x > last) this.look(x - (last - first) / 2, x + (last - first) / 2);
    this.choose(place);
  }
}

function everyPoint({ marks, failed, lines }) {
  const points = marks.x.map((x, place) => ({ x, y: marks.y[place], kind: marks.kind[place] }));
  failed.x.forEach((x, place) => points.push({ x, y: null, kind: failed.kind[place] }));
  for (const line of lines) for (const [x, y] of line.points) points.push({ x, y, kind: line.name });
  return points.sort((one, other) => one.x - other.x);
}

// The part of the scale where research happens: one diverged run must not flatten everything else.
function limits({ steps, lines }, points, first, last) {
  const heights = points.filter((point) => point.y !== null && point.x >= first && point.x <= last).map((point) => point.y);
  const shown = steps.flatMap(({ points: stairs }) => stairs.filter(([x], place) => x <= last && (stairs[place + 1]?.[0] ?? Infinity) >= first).map(([, y]) => y));
  for (const line of lines) {
    line.points.forEach(([x, y], place) => {
      if (line.errors && x >= first && x <= last) shown.push(y - line.errors[place], y + line.errors[place]);
    });
  }
  if (!heights.length && !shown.length) return [0, 1];
  const sorted = Float64Array.from(heights).sort();
  const at = (share) => sorted[Math.floor(share * (sorted.length - 1))];
  const low = Math.min(...shown, sorted.length ? sorted[0] : Infinity);
  let high = Math.max(...shown, sorted.length ? sorted[0] : -Infinity);
  if (sorted.length) high = Math.max(high, Math.min(sorted.at(-1), at(0.5) + 3 * (at(0.75) - at(0.25)) + 0.6 * (at(0.5) - low)));
  const room = 0.06 * (high - low) || 0.002 * Math.abs(high) || 1;
  return [low - room, high + room];
}

function ticks(low, high, most, integers) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  if (integers) step = Math.max(1, Math.round(step));
  const digits = Math.max(0, Math.min(8, -Math.floor(Math.log10(step) + 1e-9)));
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + 1e-12; value += step) {
    found.push([value, (Math.abs(value) < step / 1e6 ? 0 : value).toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits })]);
  }
  return found;
}

function trace(pen, shape, x, y, size) {
  if (shape === "beyond") {
    pen.moveTo(x - size, y + size);
    pen.lineTo(x, y - size);
    pen.lineTo(x + size, y + size);
    pen.closePath();
  } else if (shape === "crash") {
    pen.moveTo(x - size, y - size);
    pen.lineTo(x + size, y + size);
    pen.moveTo(x + size, y - size);
    pen.lineTo(x - size, y + size);
  } else if (shape === "replicate" || shape === "reject") {
    pen.moveTo(x, y - size - 1);
    pen.lineTo(x + size + 1, y);
    pen.lineTo(x, y + size + 1);
    pen.lineTo(x - size - 1, y);
    pen.closePath();
  } else {
    pen.moveTo(x + size, y);
    pen.arc(x, y, size, 0, 7);
  }
}

function finish(pen, kind, colours) {
  if (kind === "keep" || kind === "reject") {
    pen.fillStyle = colours[kind];
    pen.fill();
    if (kind === "keep") stroke(pen, colours.card, 1.2, []);
    return;
  }
  pen.globalAlpha = kind === "discard" ? 0.55 : 1;
  stroke(pen, colours[kind], kind === "crash" ? 1.6 : 1.1, []);
  pen.globalAlpha = 1;
}

function stroke(pen, colour, width, dash) {
  pen.setLineDash(dash);
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.stroke();
  pen.setLineDash([]);
}

function palette() {
  const style = getComputedStyle(document.documentElement);
  const names = ["ink", "quiet", "line", "card", "accent", "keep", "discard", "crash", "reject", "replicate", "open"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}
