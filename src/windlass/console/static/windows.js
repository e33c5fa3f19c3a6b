// Windows: the open ones per shard, one total over the windows, and the table's items.
import { h, fill, say, ask, count, compact, exact, duration, bytes, clock, moment, both, shard } from "./dom.js";
import { Chart } from "./charts.js";
import { VirtualList } from "./list.js";

const SPANS = [30, 120, 720, 2880];

export function segmented(label, options, chosen, onchoose) {
  const group = h("div", { class: "segments", role: "group", "aria-label": label });
  const draw = (value) => fill(group, options.map(([each, text]) => h("button", {
    type: "button", "aria-pressed": String(each === value), onclick: () => { draw(each); onchoose(each); },
  }, text)));
  draw(chosen);
  return group;
}

export function card(title, note, body, tools) {
  return h("section", { class: "card" },
    h("header", {}, h("h2", {}, title), h("p", { class: "note" }, note), h("div", { class: "card-tools" }, tools)), body);
}

export function later(wait, call) {
  let timer = null;
  return () => { clearTimeout(timer); timer = setTimeout(call, wait); };
}

export function windowsView(app) {
  const { pipeline } = app;
  const state = { total: pipeline.totals[0] || "", text: "", span: 120, revision: -1, busy: false };

  // --- open windows --------------------------------------------------------------------------------------------
  const openRows = h("div", { class: "open-windows" });
  const openNote = h("span", {});
  const rows = new Map();

  function openRow(view) {
    const bar = h("i", {});
    const row = {
      bar, when: h("span", { class: "num" }), folded: h("span", { class: "num" }), size: h("span", { class: "num dim" }),
      left: h("span", { class: "num dim" }), state: h("span", { class: "pill" }),
      progress: h("div", { class: "progress", role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100", "aria-label": `window of shard ${shard(view.shard_id)}` }, bar),
    };
    row.element = h("div", { class: "open-row", "data-shard": view.shard_id },
      h("span", { class: "shard-name", title: view.shard_id }, shard(view.shard_id)), row.progress,
      row.when, row.left, row.folded, row.size, row.state);
    return row;
  }

  // The bar moves on its own until the next tick; backwards it jumps, as another window has begun.
  function glide(row, now, soon) {
    if (soon < (row.soon || 0)) {
      row.bar.style.transition = "none";
      row.bar.style.transform = `scaleX(${now})`;
      row.bar.getBoundingClientRect();
      row.bar.style.transition = "";
    }
    row.soon = soon;
    row.bar.style.transform = `scaleX(${soon})`;
  }

  function showOpen(tick) {
    const shown = tick.shards.filter((view) => view.state !== "done").slice(0, 64);
    const names = new Set(shown.map((view) => view.shard_id));
    for (const [name, row] of rows) if (!names.has(name)) { row.element.remove(); rows.delete(name); }
    for (const view of shown) {
      if (!rows.has(view.shard_id)) { rows.set(view.shard_id, openRow(view)); openRows.append(rows.get(view.shard_id).element); }
      const row = rows.get(view.shard_id);
      const has = view.window !== null;
      const shareAt = (ms) => (has ? Math.min(1, Math.max(0, (ms - view.window[0]) / (view.window[1] - view.window[0]))) : 0);
      const share = shareAt(tick.now_ms);
      glide(row, share, shareAt(tick.now_ms + 1000));
      row.progress.setAttribute("aria-valuenow", String(Math.round(share * 100)));
      row.progress.classList.toggle("closing", share >= 1);
      say(row.when, has ? `${clock(view.window[0])} – ${clock(view.window[1])}` : "no open window");
      row.when.classList.toggle("dim", !has);
      const left = has ? view.window[1] - tick.now_ms : 0;
      say(row.left, has ? (left > 0 ? `${duration(left)} left` : "closing") : "");
      say(row.folded, has && view.folded !== null ? `${count(view.folded)} folded` : "");
      say(row.size, has && view.state_bytes ? bytes(view.state_bytes) : "");
      row.state.dataset.state = view.state;
      say(row.state, view.state);
    }
    const openCount = shown.filter((view) => view.window).length;
    say(openNote, `${openCount} of ${shown.length} shards have one · ${duration(pipeline.every_ms)} each`);
  }

  // --- the chart -----------------------------------------------------------------------------------------------
  const chart = new Chart({ label: "Totals per window", height: 210, format: compact, empty: "No window has settled yet.", span: (pipeline.every_ms * 6) / 1000 });
  const chartNote = h("span", {});

  async function readChart() {
    const found = await ask("chart", { total: state.total, key: state.text ? [state.text] : [], top: 8, span: state.span });
    const many = found.keys > found.series.length;
    say(chartNote, state.text && found.series.length === 1 && found.series[0].key === state.text
      ? `${pipeline.key_attribute} ${state.text}` : many ? `the ${found.series.length} largest of ${count(found.keys)} keys` : `by ${pipeline.key_attribute}`);
    const few = found.at_ms.length <= 60;
    const lines = found.series.map((each) => ({ label: each.key, points: few }));
    const data = [found.at_ms.map((at) => at / 1000), ...found.series.map((each) => each.values)];
    if (!state.text && found.series.length > 1) {
      lines.push({ label: "all keys", colour: "--dim", dash: [4, 4], points: false });
      data.push(found.sum);
    }
    chart.show(data, lines);
  }

  // --- the items -----------------------------------------------------------------------------------------------
  const shardNames = () => (app.tick ? app.tick.shards.map((view) => view.shard_id) : []);

  function contributions(item) {
    const names = shardNames().filter((name) => name in item.shards || app.tick.shards.find((v) => v.shard_id === name && !v.closed));
    const known = [...new Set([...names, ...Object.keys(item.shards)])].sort();
    const box = h("span", { class: "dots", title: `${Object.keys(item.shards).length} shards have contributed:\n${Object.keys(item.shards).sort().join("\n")}` },
      known.length <= 16 ? known.map((name) => h("i", { class: name in item.shards ? "on" : "" })) : null,
      h("span", {}, String(Object.keys(item.shards).length)));
    return box;
  }

  const list = new VirtualList({
    label: "Items of the table", empty: "No items yet: they come when windows close.",
    head: [pipeline.key_attribute, "window", ...pipeline.totals, "shards"],
    identity: (item) => `${item.key}|${item.window_start_ms}`,
    fetchPage: (offset, limit) => ask("items", { q: state.text, offset, limit }),
    onanswer: fresh,
    draw: (item) => [
      h("span", { class: "cell-key", title: item.key }, item.key),
      h("span", { class: "num", title: both(item.window_start_ms) }, item.window_start_ms ? moment(item.window_start_ms) : "–",
        h("span", { class: "dim" }, item.window_end_ms ? ` – ${clock(item.window_end_ms)}` : "")),
      ...pipeline.totals.map((name) => h("span", { class: "num right" }, name in item.totals ? exact(item.totals[name]) : "–")),
      contributions(item),
    ],
    rowClass: (item) => (state.seen && !state.seen.has(`${item.key}|${item.window_start_ms}`) ? "fresh" : ""),
    onpick: (item) => showItem(item),
  });
  list.element.style.setProperty("--columns", `minmax(5rem, 1.2fr) minmax(13.5rem, 1.6fr) ${pipeline.totals.map(() => "minmax(5rem, 1fr)").join(" ")} minmax(5rem, .9fr)`);
  list.element.classList.add("items");
  list.fits = 14;

  // New rows light up once.
  function fresh(answer) {
    if (answer.offset === 0) {
      state.seen = state.next || new Set(answer.rows.map((item) => `${item.key}|${item.window_start_ms}`));
      state.next = new Set([...state.seen, ...answer.rows.map((item) => `${item.key}|${item.window_start_ms}`)]);
      if (state.next.size > 5000) state.next = null;
    }
    say(itemsNote, `${count(answer.total)} ${state.text ? "found" : "items"}${app.tick && !app.tick.items_whole ? " · the newest only; filter by a whole key to read all of its items" : ""}`);
  }

  const itemsNote = h("span", {});
  const detail = h("div", { class: "item-detail", hidden: true });

  function showItem(item) {
    detail.hidden = false;
    const shards = Object.entries(item.shards).sort();
    fill(detail,
      h("button", { class: "quiet close", "aria-label": "Close", onclick: closed }, "×"),
      h("h3", {}, `${pipeline.key_attribute} ${item.key}`),
      h("p", { class: "dim num" }, `${moment(item.window_start_ms)} – ${item.window_end_ms ? clock(item.window_end_ms) : ""}`),
      h("dl", { class: "pairs" },
        Object.entries(item.totals).map(([name, value]) => [h("dt", {}, name), h("dd", { class: "num" }, exact(value))]),
        Object.entries(item.others).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
      h("h4", {}, `${shards.length} ${shards.length === 1 ? "shard has" : "shards have"} contributed`),
      h("table", { class: "fence" },
        h("thead", {}, h("tr", {}, h("th", {}, "shard"), h("th", {}, "applied through"))),
        h("tbody", {}, shards.map(([name, position]) => h("tr", {}, h("td", {}, name), h("td", { class: "mono" }, position.replace(/^0+/, "").replace(/\.0+$/, "")))))));
  }

  function closed() {
    detail.hidden = true;
    state.revision = -1;
    list.letGo();
  }

  const suggestions = h("datalist", { id: "keys-known" });
  const search = h("input", {
    type: "search", placeholder: `Filter by ${pipeline.key_attribute}`, "aria-label": `Filter by ${pipeline.key_attribute}`, list: "keys-known",
    autocomplete: "off", spellcheck: "false", id: "key-filter",
  });
  const filter = later(150, async () => {
    state.text = search.value.trim();
    state.seen = state.next = null;
    list.restart();
    readChart();
    const known = await ask("keys", { q: state.text, limit: 20 });
    fill(suggestions, known.rows.map((key) => h("option", { value: key })));
  });
  search.addEventListener("input", filter);

  const element = h("div", { class: "view windows" },
    card("Open windows", openNote, openRows),
    card("Settled", chartNote, chart.element, [
      pipeline.totals.length > 1
        ? segmented("Total", pipeline.totals.map((name) => [name, name]), state.total, (name) => { state.total = name; readChart(); })
        : h("span", { class: "dim" }, state.total),
      segmented("How long back", SPANS.map((windows) => [windows, duration(windows * pipeline.every_ms)]), state.span, (span) => { state.span = span; readChart(); }),
    ]),
    card("Table", itemsNote, [h("div", { class: "split" }, list.element, detail)], [search, suggestions]));
  element.lastElementChild.classList.add("grow");

  return {
    element,
    escape: () => { closed(); list.scroller.scrollTop = 0; },
    repaint: () => { chart.redraw(); list.render(); },
    opened: () => { state.revision = -1; },
    show: async (tick) => {
      showOpen(tick);
      if (state.busy || tick.revision.items === state.revision) return;
      state.revision = tick.revision.items;
      state.busy = true;
      try { await Promise.all([readChart(), list.held() ? null : list.refresh()]); } finally { state.busy = false; }
    },
  };
}
