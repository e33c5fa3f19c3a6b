// Elements, numbers and times. Text goes in as text nodes only: nothing here reads markup.

export function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name === "style") for (const [rule, set] of Object.entries(value)) element.style.setProperty(rule, set);
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function fill(element, ...children) {
  element.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Sets only what differs, so that a selection or a screen reader is not disturbed every second.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 });
const fine = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 3 });

export function count(value) {
  return value === null || value === undefined ? "–" : whole.format(value);
}

export function compact(value) {
  if (value === null || value === undefined) return "–";
  return Math.abs(value) >= 10000 ? short.format(value) : Math.abs(value) < 10 ? fine.format(value) : whole.format(value);
}

// Exact texts of any length, with thousands set apart.
export function exact(text) {
  const found = /^(-?)(\d+)(\.\d+)?$/.exec(text);
  return found ? found[1] + found[2].replace(/\B(?=(\d{3})+$)/g, ",") + (found[3] || "") : text;
}

export function rate(value) {
  if (value === null || value === undefined) return "–";
  return (value > 0 && value < 10 ? value.toFixed(1) : compact(value)) + "/s";
}

export function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1) return ms ? `${ms.toFixed(2)} ms` : "0 ms";
  if (ms < 10) return `${Number(ms.toFixed(1))} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 59500) return `${(ms / 1000).toFixed(ms < 9950 && ms % 1000 ? 1 : 0)} s`;
  const s = Math.round(ms / 1000), min = Math.round(s / 60);
  const [whole, unit, rest, smaller] = s < 3600 ? [Math.floor(s / 60), "min", s % 60, "s"] : [Math.floor(min / 60), "h", min % 60, "min"];
  return `${whole} ${unit}${rest ? ` ${rest} ${smaller}` : ""}`;
}

export function bytes(size) {
  if (size === null || size === undefined) return "–";
  if (size < 1000) return `${size} B`;
  if (size < 1e6) return `${(size / 1024).toFixed(size < 10240 ? 1 : 0)} KiB`;
  return `${(size / 1048576).toFixed(1)} MiB`;
}

// --- times -----------------------------------------------------------------------------------------------------

function stored(name) {
  try { return localStorage.getItem(name); } catch { return null; }
}

export function store(name, value) {
  try { localStorage.setItem(name, value); } catch { /* storage may be off */ }
}

export const zone = { local: stored("windlass.zone") === "local" };

const two = (number) => String(number).padStart(2, "0");

export function parts(ms) {
  const date = new Date(ms);
  return zone.local
    ? [date.getFullYear(), date.getMonth() + 1, date.getDate(), date.getHours(), date.getMinutes(), date.getSeconds()]
    : [date.getUTCFullYear(), date.getUTCMonth() + 1, date.getUTCDate(),
       date.getUTCHours(), date.getUTCMinutes(), date.getUTCSeconds()];
}

export function clock(ms, fraction = false) {
  if (ms === null || ms === undefined) return "–";
  const [, , , hour, minute, second] = parts(ms);
  const rest = fraction ? "." + String(ms % 1000).padStart(3, "0") : "";
  return `${two(hour)}:${two(minute)}:${two(second)}${rest}`;
}

export function day(ms) {
  const [year, month, date] = parts(ms);
  return `${year}-${two(month)}-${two(date)}`;
}

export function moment(ms, fraction = false) {
  return ms === null || ms === undefined ? "–" : `${day(ms)} ${clock(ms, fraction)}`;
}

// Both clocks, for tooltips.
export function both(ms) {
  if (ms === null || ms === undefined) return "";
  return `${new Date(ms).toISOString()}\n${new Date(ms).toString()}`;
}

export function shard(id) {
  const found = /^shardId-0*(\d+)$/.exec(id);
  return found ? found[1].padStart(2, "0") : id;
}

// --- asking ----------------------------------------------------------------------------------------------------

export async function ask(path, query) {
  const url = new URL(`/api/${path}`, location.origin);
  for (const [name, value] of Object.entries(query || {})) {
    for (const each of Array.isArray(value) ? value : [value]) url.searchParams.append(name, each);
  }
  return read(await fetch(url));
}

export async function tell(path, body) {
  return read(await fetch(`/api/${path}`, {
    method: "POST",
    headers: { "content-type": "application/json", "x-windlass": "1" },
    body: JSON.stringify(body),
  }));
}

async function read(response) {
  const answer = await response.json();
  if (!response.ok || (answer && answer.problem)) throw new Error(answer.problem || `the console answered ${response.status}`);
  return answer;
}
