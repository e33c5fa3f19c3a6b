// Logs: the invocations, newest first, and what each of them wrote.
import { h, fill, say, ask, count, duration, bytes, clock, moment, both, shard } from "./dom.js";
import { VirtualList } from "./list.js";
import { card, later, segmented } from "./windows.js";

const KINDS = { fold: "fold", final: "final", early: "early", plain: "plain" };

export function logsView() {
  const state = { text: "", only: "", following: true, number: -1, busy: false };
  const note = h("span", {});
  const detail = h("div", { class: "detail" }, h("p", { class: "empty" }, "Choose a call to read its log."));

  const list = new VirtualList({
    label: "Invocations", empty: "No calls to show.",
    head: ["time", "shard", "call", "records", "duration", "outcome"],
    identity: (call) => String(call.number),
    fetchPage: (offset, limit) => ask("calls", { q: state.text, only: state.only, offset, limit }),
    onanswer: (answer) => say(note, `${count(answer.total)} kept`),
    draw: (call) => [
      h("span", { class: "num", title: both(call.started_ms) }, clock(call.started_ms, true)),
      h("span", { class: "num", title: call.shard_id }, call.shard_id ? shard(call.shard_id) : "–"),
      h("span", {}, h("span", { class: `tag ${call.kind}` }, KINDS[call.kind] || "call"), call.attempt > 1 ? h("span", { class: "dim" }, ` ${call.attempt}×`) : null),
      h("span", { class: "num right" }, call.records === null ? "–" : count(call.records)),
      h("span", { class: "num right" }, duration(call.duration_ms)),
      h("span", { class: call.error_type ? "bad clip" : "dim clip" }, call.error_type || outcome(call)),
    ],
    rowClass: (call) => (call.error_type ? "failed" : ""),
    onpick: (call) => { follow(false); show(call); },
  });
  list.element.style.setProperty("--columns", "6.5rem 3rem 6rem 4.5rem 5rem minmax(6rem, 1fr)");

  function outcome(call) {
    const { flushed_rows, rejected } = call.figures;
    const refused = rejected ? Object.values(rejected).reduce((all, each) => all + each, 0) : 0;
    return [flushed_rows ? `${flushed_rows} ${flushed_rows === 1 ? "row" : "rows"} written` : "", refused ? `${refused} rejected` : ""].filter(Boolean).join(", ") || "ok";
  }

  function show(call) {
    const pairs = [
      ["request", call.request_id], ["started", moment(call.started_ms, true)], ["duration", duration(call.duration_ms)],
      ["shard", call.shard_id], ["window", call.window ? `${clock(call.window[0])} – ${clock(call.window[1])}` : ""],
      ["records", call.records === null ? "" : count(call.records)], ["attempt", call.attempt ? String(call.attempt) : ""],
      ["billed", call.billed_ms ? duration(call.billed_ms) : ""], ["memory", call.memory_mb ? `${call.memory_mb} MB` : ""],
      ["init", call.init_ms ? duration(call.init_ms) : ""],
      ...Object.entries(call.figures).map(([name, value]) => [name.replaceAll("_", " "),
        name === "state_bytes" ? bytes(value) : typeof value === "object" ? Object.entries(value).map(([reason, many]) => `${reason} ${many}`).join(", ") : count(value)]),
    ];
    fill(detail,
      h("button", { class: "quiet close", "aria-label": "Close", onclick: closed }, "×"),
      call.error_type ? h("div", { class: "error" }, h("b", {}, call.error_type), h("p", {}, call.error_message)) : null,
      h("dl", { class: "pairs" }, pairs.filter(([, value]) => value).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
      h("pre", { class: "log", tabindex: "0" }, call.lines.map((line) => h("span", { class: kind(line) }, `${line}\n`))));
    element.classList.add("has-detail");
  }

  function kind(line) {
    if (/^(START|END|REPORT|INIT_START)/.test(line)) return "frame";
    if (/"level": ?"ERROR"|^\[ERROR\]|Traceback|Error: |Status: (error|timeout)/.test(line)) return "bad";
    if (/"level": ?"WARNING"|^\[WARNING\]/.test(line)) return "warn";
    return "";
  }

  function closed() { element.classList.remove("has-detail"); list.letGo(); }

  const followed = h("button", { type: "button", class: "toggle", "aria-pressed": "true", id: "follow", onclick: () => follow(!state.following) }, "Follow");
  function follow(on) {
    state.following = on;
    followed.setAttribute("aria-pressed", String(on));
    if (on) { list.scroller.scrollTop = 0; state.number = -1; }
  }
  list.scroller.addEventListener("wheel", () => { if (list.scroller.scrollTop > 0) follow(false); }, { passive: true });

  const search = h("input", { type: "search", placeholder: "Search the log lines", "aria-label": "Search the log lines", autocomplete: "off", spellcheck: "false", id: "log-search" });
  search.addEventListener("input", later(150, () => { state.text = search.value.trim(); list.restart(); }));

  const element = h("div", { class: "view logs" },
    card("Invocations", note, h("div", { class: "split wide" }, list.element, detail), [
      segmented("Show", [["", "all"], ["notable", "notable"], ["final", "final"], ["errors", "errors"]], "", (only) => { state.only = only; list.restart(); }),
      followed, search]));

  return {
    element,
    escape: closed,
    opened: () => { state.number = -1; },
    repaint: () => list.render(),
    show: async (tick) => {
      if (state.busy || !state.following || tick.revision.calls === state.number) return;
      state.number = tick.revision.calls;
      state.busy = true;
      try { await list.refresh(); } finally { state.busy = false; }
    },
  };
}
