// Trouble: what was refused, what was given up, and which shard is blocked by what.
import { h, fill, say, ask, count, bytes, clock, moment, both, shard } from "./dom.js";
import { VirtualList } from "./list.js";
import { card, later } from "./windows.js";

export function pretty(record) {
  if (!record.json) return record.text;
  try { return JSON.stringify(JSON.parse(record.text), null, 2); } catch { return record.text; }
}

export function troubleView(app) {
  const state = { reason: "", text: "", revision: -1, busy: false, failures: -1 };
  const note = h("span", {});
  const reasons = h("div", { class: "reasons", role: "group", "aria-label": "Reasons" });
  const detail = h("div", { class: "detail" }, h("p", { class: "empty" }, "Choose a record to see it."));
  const blocked = h("div", { class: "blocked" });
  const failures = h("div", {});

  const list = new VirtualList({
    label: "Rejected records", empty: "Nothing has been rejected.",
    head: ["arrived", "shard", "reason", "why"],
    identity: (record) => `${record.shard_id}|${record.sequence}|${record.sub}`,
    fetchPage: (offset, limit) => ask("rejected", { reason: state.reason, q: state.text, offset, limit }),
    onanswer: (answer) => {
      drawReasons(answer.reasons);
      say(note, `${count(answer.total)} ${state.reason || state.text ? "found" : "in quarantine"}${answer.whole ? "" : " · not all of them are here"}`);
    },
    draw: (record) => [
      h("span", { class: "num", title: both(record.arrival_ms) }, clock(record.arrival_ms, true)),
      h("span", { class: "num", title: record.shard_id }, shard(record.shard_id)),
      h("span", {}, h("span", { class: "tag reason" }, record.reason)),
      h("span", { class: "clip" }, record.detail),
    ],
    onpick: show,
  });
  list.element.style.setProperty("--columns", "6.5rem 3rem 9.5rem minmax(8rem, 1fr)");

  function drawReasons(found) {
    const most = Math.max(1, ...found.map((each) => each.count));
    const chip = (reason, label, many, title) => {
      const bar = h("i", {});
      bar.style.transform = `scaleX(${many / most})`;
      return h("button", { type: "button", class: "reason-row", "aria-pressed": String(state.reason === reason), "data-reason": reason, title,
        onclick: () => { state.reason = reason; list.restart(); } },
        h("span", { class: "reason-name" }, label), h("b", { class: "num" }, count(many)), h("span", { class: "reason-words" }, title), h("span", { class: "reason-bar" }, bar));
    };
    const all = found.reduce((sum, each) => sum + each.count, 0);
    fill(reasons, found.length ? [chip("", "all reasons", all, ""), found.map((each) => chip(each.reason, each.reason, each.count, each.meaning))] : h("p", { class: "empty" }, "Every record so far was clean."));
    reasons.firstElementChild.querySelector(".reason-bar")?.remove();
  }

  function show(record) {
    element.classList.add("has-detail");
    fill(detail,
      h("button", { class: "quiet close", "aria-label": "Close", onclick: closed }, "×"),
      h("h3", {}, record.reason), h("p", { class: "meaning" }, record.meaning), h("p", { class: "why" }, record.detail),
      h("dl", { class: "pairs" }, [
        ["arrived", moment(record.arrival_ms, true)], ["shard", record.shard_id], ["sequence", record.sequence],
        ["in the aggregate", record.sub ? `record ${record.sub}` : ""], ["size", bytes(record.bytes)],
      ].filter(([, value]) => value).map(([name, value]) => [h("dt", {}, name), h("dd", { class: name === "sequence" ? "mono" : "" }, value)])),
      h("h4", {}, record.json ? "The record" : "The bytes, what is not text escaped"),
      h("pre", { class: "log", id: "record-text", tabindex: "0" }, pretty(record) || "(no bytes)"),
      h("details", {}, h("summary", {}, "base64"), h("pre", { class: "log" }, record.base64)));
  }

  function closed() { element.classList.remove("has-detail"); list.letGo(); }

  // Somebody reads on in the list: only the counts follow.
  async function countNew() {
    const answer = await ask("rejected", { limit: 0 });
    drawReasons(answer.reasons);
    const more = answer.reasons.reduce((sum, each) => sum + each.count, 0) - list.total;
    if (!state.reason && !state.text && more > 0) say(note, `${count(list.total)} in quarantine · ${count(more)} more since (Esc)`);
  }

  function showBlocked(tick) {
    const found = tick.shards.filter((view) => view.trouble);
    blocked.hidden = !found.length;
    const text = JSON.stringify(found.map((view) => [view.shard_id, view.trouble, view.state, view.errors]));
    if (text === blocked.dataset.text) return;
    blocked.dataset.text = text;
    fill(blocked, found.map((view) => h("div", { class: "blocked-row", "data-state": view.state },
      h("b", {}, view.state === "blocked" ? `Shard ${shard(view.shard_id)} is blocked` : `Shard ${shard(view.shard_id)}: its last call failed`),
      h("span", {}, view.trouble), h("span", { class: "dim" }, `${count(view.errors)} failed calls`, view.window ? ` · window ${clock(view.window[0])} – ${clock(view.window[1])}` : ""))));
  }

  async function readFailures() {
    const found = await ask("failures");
    if (found === null) {
      fill(failures, h("p", { class: "empty" }, app.pipeline.on_failure
        ? `Messages about batches that were given up go to ${app.pipeline.on_failure}; they are not read here, as reading takes them away.`
        : "No on-failure destination is set; with retries without end, as windlass deploys it, no batch is given up."));
      return;
    }
    fill(failures, found.length ? h("table", { class: "plain" },
      h("thead", {}, h("tr", {}, ["when", "shard", "condition", "records", "sent to", "what came of it"].map((name) => h("th", {}, name)))),
      h("tbody", {}, found.map((each) => h("tr", {}, h("td", { class: "num" }, moment(each.at_ms)), h("td", {}, shard(each.shard_id)), h("td", {}, each.condition),
        h("td", { class: "num right" }, count(each.records)), h("td", { class: "mono" }, each.destination), h("td", { class: each.refused ? "bad" : "" }, each.refused || "delivered")))))
      : h("p", { class: "empty" }, "No batch was given up."));
  }

  const search = h("input", { type: "search", placeholder: "Search details and bytes", "aria-label": "Search rejected records", autocomplete: "off", spellcheck: "false", id: "rejected-search" });
  search.addEventListener("input", later(150, () => { state.text = search.value.trim(); list.restart(); }));

  const element = h("div", { class: "view trouble" }, blocked,
    card("Rejected records", note, h("div", { class: "split three" }, reasons, list.element, detail), search),
    card("Batches given up", "on-failure messages", failures));
  element.querySelector(".card").classList.add("grow");

  return {
    element,
    escape: () => { closed(); list.scroller.scrollTop = 0; state.revision = -1; },
    opened: () => { state.revision = -1; state.failures = -1; },
    repaint: () => list.render(),
    show: async (tick) => {
      showBlocked(tick);
      if (tick.failures !== state.failures) { state.failures = tick.failures; readFailures(); }
      if (state.busy || tick.revision.rejected === state.revision) return;
      state.revision = tick.revision.rejected;
      state.busy = true;
      try { if (list.held() || !(await list.refresh())) await countNew(); } finally { state.busy = false; }
    },
  };
}
