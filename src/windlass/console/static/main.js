// The frame around the views: tabs, keys, theme, clock, and the one stream of events that drives them all.
import { h, fill, say, ask, store, zone, clock } from "./dom.js";
import { windowsView } from "./windows.js";
import { monitorView } from "./monitor.js";
import { logsView } from "./logs.js";
import { troubleView } from "./trouble.js";
import { pipelineView } from "./pipeline.js";

const VIEWS = [
  ["windows", "Windows", windowsView, "M4 5h16v4H4zM4 11h16v4H4zM4 17h10v3H4z"],
  ["monitor", "Monitor", monitorView, "M4 19V5M4 19h16M7 15l4-5 3 3 5-7"],
  ["logs", "Logs", logsView, "M5 6h14M5 10h14M5 14h9M5 18h11"],
  ["trouble", "Trouble", troubleView, "M12 4l9 16H3zM12 10v5M12 17.4v.6"],
  ["pipeline", "Pipeline", pipelineView, "M3 12h4m10 0h4M7 8h4v8H7zM13 8h4v8h-4zM11 12h2"],
];

const app = { pipeline: null, tick: null };
const views = new Map();
let open = null;

const main = document.getElementById("main");
const tabs = document.getElementById("tabs");
const live = document.getElementById("live");
const banner = document.getElementById("banner");

function icon(path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const drawn = document.createElementNS("http://www.w3.org/2000/svg", "path");
  drawn.setAttribute("d", path);
  svg.append(drawn);
  return svg;
}

function buildTabs() {
  fill(tabs, VIEWS.map(([name, label, , path], index) =>
    h("a", { href: `#${name}`, id: `tab-${name}`, title: `${label} (${index + 1})` },
      icon(path), h("span", {}, label), h("em", { class: "badge", hidden: true }))));
}

function go() {
  const asked = location.hash.slice(1);
  const found = VIEWS.find(([name]) => name === asked) || VIEWS[0];
  const name = found[0];
  for (const [each] of VIEWS) {
    const tab = document.getElementById(`tab-${each}`);
    if (each === name) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  if (!views.has(name)) views.set(name, found[2](app));
  open = views.get(name);
  document.title = `${found[1]} · ${app.pipeline.title} · Windlass`;
  fill(main, open.element);
  scrollTo(0, 0);
  if (open.opened) open.opened();
  if (app.tick) open.show(app.tick);
}

function badge(name, text, kind = "") {
  const element = document.querySelector(`#tab-${name} .badge`);
  element.hidden = !text;
  element.className = `badge ${kind}`;
  say(element, text);
}

function show(tick) {
  app.tick = tick;
  if (app.revision === undefined) app.revision = tick.revision.pipeline;
  if (tick.revision.pipeline && tick.revision.pipeline !== app.revision) {
    app.revision = tick.revision.pipeline;
    redraw();
    return;
  }
  const blocked = tick.shards.filter((shard) => shard.state === "blocked").length;
  badge("trouble", blocked ? `${blocked} blocked` : tick.rejected ? short(tick.rejected) : "", blocked ? "bad" : "");
  badge("logs", tick.last_error > tick.now_ms - 60000 ? "!" : "", "bad");
  banner.hidden = tick.problems.length === 0;
  say(banner, tick.problems.join(" · "));
  status("live", `live · ${clock(tick.now_ms)}`);
  if (open) open.show(tick);
}

function short(value) {
  return value > 99999 ? `${Math.round(value / 1000)}k` : value.toLocaleString("en-US");
}

function status(kind, text) {
  if (live.dataset.kind !== kind) live.dataset.kind = kind;
  say(live.lastElementChild, text);
}

function listen() {
  const events = new EventSource("/api/stream");
  events.addEventListener("tick", (event) => show(JSON.parse(event.data)));
  events.addEventListener("error", () => status("lost", "not connected; trying again"));
  addEventListener("pagehide", () => events.close());
}

// --- theme and clock -------------------------------------------------------------------------------------------

function repaint() {
  for (const view of views.values()) if (view.repaint) view.repaint();
  if (app.tick) show(app.tick);
}

function turnTheme() {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  store("windlass.theme", root.dataset.theme);
  repaint();
}

function turnZone() {
  zone.local = !zone.local;
  store("windlass.zone", zone.local ? "local" : "utc");
  nameZone();
  repaint();
}

function nameZone() {
  say(document.getElementById("zone"), zone.local ? "local time" : "UTC");
}

// --- keys ------------------------------------------------------------------------------------------------------

const KEYS = [
  ["1 – 5", "the five views"],
  ["/", "search or filter"],
  ["j k ↓ ↑", "walk through a list"],
  ["Esc", "close, or leave the search"],
  ["u", "UTC or local time"],
  ["t", "light or dark"],
  ["?", "these keys"],
];

const dialog = h("dialog", { class: "keys", "aria-label": "Keyboard shortcuts", onclick: () => dialog.close() },
  h("h2", {}, "Keys"),
  h("dl", {}, KEYS.map(([key, what]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)])));
document.body.append(dialog);

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const inField = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
  if (event.key === "Escape") {
    if (inField) event.target.blur();
    else if (open && open.escape) open.escape();
    return;
  }
  if (inField || dialog.open) return;
  const digit = Number(event.key);
  if (digit >= 1 && digit <= VIEWS.length) location.hash = VIEWS[digit - 1][0];
  else if (event.key === "/") {
    const search = main.querySelector("input[type=search]");
    if (search) { event.preventDefault(); search.focus(); search.select(); }
  } else if (event.key === "j" || event.key === "k") {
    const list = main.querySelector(".list");
    if (list) { list.focus(); list.dispatchEvent(new KeyboardEvent("keydown", { key: event.key })); }
  } else if (event.key === "t") turnTheme();
  else if (event.key === "u") turnZone();
  else if (event.key === "?") dialog.showModal();
});

document.getElementById("theme").addEventListener("click", turnTheme);
document.getElementById("zone").addEventListener("click", turnZone);
document.getElementById("help").addEventListener("click", () => dialog.showModal());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => {
  let chosen = null;
  try { chosen = localStorage.getItem("windlass.theme"); } catch { /* storage may be off */ }
  if (chosen) return;
  document.documentElement.dataset.theme = event.matches ? "dark" : "light";
  repaint();
});

// --- begin -----------------------------------------------------------------------------------------------------

// Another pipeline, or another total: the views are made anew.
async function redraw() {
  try { await meet(); } catch { return; }
  views.clear();
  go();
}

async function meet() {
  app.pipeline = await ask("pipeline");
  const { title, stream, region, endpoint } = app.pipeline;
  fill(document.getElementById("where"), h("b", {}, title), h("span", {}, stream),
    region ? h("span", { title: endpoint || "AWS" }, endpoint ? `${region} · local` : region) : null);
}

async function begin() {
  nameZone();
  try {
    await meet();
  } catch (problem) {
    fill(main, h("div", { class: "waiting" }, h("h2", {}, "Nothing to show yet"), h("p", {}, problem.message)));
    status("waiting", "waiting");
    setTimeout(begin, 2000);
    return;
  }
  buildTabs();
  addEventListener("hashchange", go);
  go();
  listen();
}

begin();
