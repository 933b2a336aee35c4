// Keeps an open page up to date: the server tells that something has changed, and the page fetches itself again.
// Nothing here makes markup out of text. What is fetched is a page of our own, escaped by the server.

import { wire } from "./charts.js";

const GAP = 300; // milliseconds between two updates
const LOG_GAP = 1000; // the same where a run has printed something, and nothing else has happened
const AGAIN = 5000; // after the stream was refused

const connection = document.getElementById("connection");
let shown = document.body.dataset.version;
let printed = null;
let wanted = { version: shown, printed: 0 };
let busy = false;
let timer = 0;
let last = 0;

function say(words) {
  if (connection && connection.textContent !== words) connection.textContent = words;
}

function watchesLog() {
  return document.querySelector("[data-printed]") !== null;
}

function isDue() {
  return wanted.version !== shown || (watchesLog() && printed !== null && wanted.printed !== printed);
}

async function update() {
  clearTimeout(timer);
  if (busy || document.hidden || !isDue()) return;
  const wait = last + (wanted.version !== shown ? GAP : LOG_GAP) - performance.now();
  if (wait > 0) {
    timer = setTimeout(update, wait);
    return;
  }
  busy = true;
  try {
    const seen = wanted;
    const answer = await fetch(location.href, { headers: { accept: "text/html" }, redirect: "error" });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (page.body.dataset.page === document.body.dataset.page) replace(page);
    shown = seen.version;
    printed = seen.printed;
    document.body.dataset.version = shown;
    document.dispatchEvent(new CustomEvent("updated"));
  } catch {
    say("The last update failed; there will be another.");
    shown = null;
  } finally {
    last = performance.now();
    busy = false;
  }
  if (isDue()) timer = setTimeout(update, shown === null ? AGAIN : 0);
}

// Regions are replaced only if they say something else; charts, marks and focus stay.
function replace(page) {
  const focused = document.activeElement?.id;
  for (const region of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(region.id);
    if (!fresh) continue;
    const told = fresh.outerHTML;
    if (region.told === told) continue;
    keepCharts(region, fresh);
    keepMarks(region, fresh);
    region.replaceChildren(...fresh.childNodes);
    region.told = told;
  }
  if (focused && document.activeElement?.id !== focused) document.getElementById(focused)?.focus();
  wire();
  tick();
}

function keepCharts(region, fresh) {
  for (const chart of region.querySelectorAll("[data-keep]")) {
    const other = [...fresh.querySelectorAll("[data-keep]")].find((one) => one.id === chart.id);
    if (other && other.dataset.source === chart.dataset.source) other.replaceWith(chart);
  }
}

function keepMarks(region, fresh) {
  for (const open of region.querySelectorAll("details[open]")) {
    const other = [...fresh.querySelectorAll("details")].find((one) => one.id === open.id);
    if (other) other.open = true;
  }
  for (const box of region.querySelectorAll("input:checked")) {
    const other = [...fresh.querySelectorAll("input")].find((one) => one.id === box.id);
    if (other) other.checked = true;
  }
}

function listen() {
  const stream = new EventSource("/events");
  stream.onmessage = (event) => {
    wanted = JSON.parse(event.data);
    if (printed === null) printed = wanted.printed;
    say("Live");
    update();
  };
  stream.onerror = () => {
    say("Not connected; trying again.");
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, AGAIN);
  };
  addEventListener("pagehide", () => stream.close(), { once: true });
}

// --- the time that is left --------------------------------------------------------------------------------

function clock(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const pad = (value) => String(value).padStart(2, "0");
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60), whole % 60];
  return hours ? `${hours}:${pad(minutes)}:${pad(rest)}` : `${minutes}:${pad(rest)}`;
}

function tick() {
  for (const element of document.querySelectorAll("[data-left]")) {
    element.end ??= performance.now() + 1000 * Number(element.dataset.left);
    const left = (element.end - performance.now()) / 1000;
    element.textContent = clock(left);
    const bar = element.closest(".time")?.querySelector("progress");
    if (bar) bar.value = bar.max - Math.max(0, left);
  }
}

// --- a file that is read into a text ----------------------------------------------------------------------

for (const input of document.querySelectorAll("input[data-into]")) {
  input.closest("label").hidden = false; // without a script, it would send nothing
  input.addEventListener("change", async () => {
    const [file] = input.files;
    if (file) document.getElementById(input.dataset.into).value = await file.text();
  });
}

for (const form of document.querySelectorAll("[data-filter]")) {
  form.addEventListener("change", () => form.requestSubmit());
}
addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});
document.addEventListener("visibilitychange", update);
wire();
tick();
setInterval(tick, 1000);
if (document.querySelector("[data-live]")) listen();
