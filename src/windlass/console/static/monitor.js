// Monitor: the function and its stream over time.
import { h, say, ask, count, compact, duration, rate, zone } from "./dom.js";
import { Chart } from "./charts.js";
import { segmented } from "./windows.js";

const SPANS = [[60000, "1 min"], [300000, "5 min"], [900000, "15 min"], [3600000, "1 h"], [10800000, "3 h"], [86400000, "24 h"]];
const percent = (value) => `${value >= 99.95 || value === 0 ? Math.round(value) : value.toFixed(1)}%`;

export function monitorView() {
  const state = { span: 300000, asked: 0, busy: false };
  const stats = new Map();

  function stat(name, label, title) {
    const value = h("b", { class: "num" }, "–");
    stats.set(name, value);
    return h("div", { class: "stat", title }, h("span", {}, label), value);
  }

  const make = (title, label, names, options = {}) => {
    const chart = new Chart({ label: title, height: 140, sync: "monitor", format: compact, lines: names, ...options });
    return { chart, card: h("section", { class: "card chart-card" }, h("header", {}, h("h2", {}, title), h("p", { class: "note" }, label)), chart.element) };
  };

  const charts = {
    records: make("Records", "per second", [
      { label: "received", colour: "--dim", fill: true }, { label: "clean", colour: "--accent" }, { label: "rejected", colour: "--warn" }, { label: "late", colour: "--c4" }], { format: compact }),
    calls: make("Invocations", "calls", [{ label: "invocations", colour: "--accent", fill: true }]),
    duration: make("Duration", "per call", [{ label: "max", colour: "--dim", dash: [3, 3] }, { label: "avg", colour: "--accent", width: 2 }, { label: "min", colour: "--c4" }], { format: duration }),
    errors: make("Errors", "failed calls", [{ label: "errors", colour: "--bad", fill: true }]),
    success: make("Success rate", "calls that did not fail", [{ label: "success", colour: "--accent", fill: true }], { format: percent, range: () => [0, 105] }),
    age: make("Iterator age", "oldest batch at the function", [{ label: "max", colour: "--accent", fill: true }], { format: duration, minimum: 1000 }),
    writes: make("Writes", "rows merged; repeats skipped", [{ label: "rows", colour: "--accent", fill: true }, { label: "skipped", colour: "--c4" }, { label: "duplicates", colour: "--dim" }]),
    throttles: make("Throttles and retries", "refused, and tried again", [{ label: "throttled writes", colour: "--warn" }, { label: "retry rounds", colour: "--c4" }, { label: "throttled calls", colour: "--bad" }]),
    incoming: make("Put into the stream", "records per second", [{ label: "put", colour: "--accent", fill: true }]),
  };

  async function read() {
    if (state.busy) return;
    state.busy = true;
    try {
      const found = await ask("series", { span_ms: state.span });
      const at = found.at_ms.map((ms) => ms / 1000);
      const per = found.step_ms / 1000;
      const of = (name) => found.values[name];
      const perSecond = (name) => of(name).map((value) => (value === null ? null : value / per));
      charts.records.chart.show([at, perSecond("received"), perSecond("clean"), perSecond("rejected"), perSecond("late")]);
      charts.calls.chart.show([at, of("invocations")]);
      charts.duration.chart.show([at, of("duration_max"), of("duration_avg"), of("duration_min")]);
      charts.errors.chart.show([at, of("errors")]);
      charts.success.chart.show([at, of("invocations").map((calls, index) => (calls ? 100 * (1 - of("errors")[index] / calls) : null))]);
      charts.age.chart.show([at, of("iterator_age")]);
      charts.writes.chart.show([at, of("flushed_rows"), of("skipped_flushes"), of("duplicates")]);
      charts.throttles.chart.show([at, of("throttled_writes"), of("retry_rounds"), of("throttles")]);
      charts.incoming.chart.show([at, perSecond("incoming")]);
      sum(of);
    } finally { state.busy = false; }
  }

  function sum(of) {
    const total = (name) => of(name).reduce((all, value) => all + (value || 0), 0);
    const present = (name) => of(name).filter((value) => value !== null);
    const most = (name) => (present(name).length ? Math.max(...present(name)) : null);
    const calls = total("invocations");
    const weighted = of("duration_avg").reduce((all, value, index) => all + (value || 0) * (of("invocations")[index] || 0), 0);
    const set = (name, text, kind = "") => { say(stats.get(name), text); stats.get(name).dataset.kind = kind; };
    set("invocations", count(calls));
    set("success", calls ? percent(100 * (1 - total("errors") / calls)) : "–", total("errors") ? "bad" : "");
    set("duration", calls ? duration(weighted / calls) : "–");
    set("age", duration(most("iterator_age")));
    set("received", count(total("received")));
    set("clean", count(total("clean")));
    set("rejected", count(total("rejected")), total("rejected") ? "warn" : "");
    set("late", count(total("late")));
    set("throttled", count(total("throttled_writes") + total("throttles")));
  }

  const element = h("div", { class: "view monitor" },
    h("div", { class: "toolbar" },
      h("div", { class: "stats" },
        stat("invocations", "invocations"), stat("success", "success"), stat("duration", "avg duration"), stat("age", "max iterator age"),
        stat("received", "received"), stat("clean", "clean"), stat("rejected", "rejected"), stat("late", "late"), stat("throttled", "throttled")),
      segmented("Span", SPANS, state.span, (span) => { state.span = span; read(); })),
    h("div", { class: "charts" }, Object.values(charts).map(({ card }) => card)));

  return {
    element,
    opened: () => { state.asked = 0; },
    repaint: () => Object.values(charts).forEach(({ chart }) => chart.redraw()),
    show: (tick) => {
      const wait = state.span <= 300000 ? 900 : 4900;
      if (tick.now_ms - state.asked < wait) return;
      state.asked = tick.now_ms;
      read();
    },
  };
}
