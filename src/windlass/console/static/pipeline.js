// Pipeline: all of it as one drawing with live rates, and a record of one's own put into it.
import { h, fill, say, ask, tell, count, rate, exact, duration, clock, moment, shard } from "./dom.js";
import { card } from "./windows.js";
import { pretty } from "./trouble.js";

export function pipelineView(app) {
  const { pipeline } = app;
  const flows = new Map();

  function arrow(name, label, kind = "") {
    const value = h("b", { class: "num" }, "–");
    const line = h("i", { class: "flow-line" });
    flows.set(name, { value, line });
    return h("div", { class: `flow ${kind}` }, value, line, h("span", {}, label));
  }

  function node(kind, title, name, ...body) {
    return h("div", { class: `node ${kind}` }, h("span", { class: "node-kind" }, title), h("b", { class: "node-name", title: name }, name), body);
  }

  const pairs = (settings) => h("dl", { class: "pairs small" }, settings.map(({ name, value }) => [h("dt", {}, name), h("dd", {}, value)]));
  const tableNote = h("p", { class: "dim" });
  const rejectedNote = h("p", { class: "dim" });
  const shards = h("div", { class: "shards", role: "table", "aria-label": "Shards" });

  const drawing = h("div", { class: "drawing" },
    node("stream", "Kinesis stream", pipeline.stream, h("p", { class: "dim", id: "shard-count" }), h("div", { class: "minimap", "aria-hidden": "true" })),
    arrow("received", "records"),
    node("mapping", "Event source mapping", pipeline.every_ms ? `windows of ${duration(pipeline.every_ms)}` : "no windows", pairs(pipeline.mapping)),
    arrow("invocations", "calls"),
    node("function", "Lambda function", pipeline.function, pairs(pipeline.runtime), h("p", { class: "dim", id: "function-errors" })),
    arrow("flushed_rows", "rows"),
    node("table", "DynamoDB table", pipeline.table, tableNote,
      h("p", { class: "dim" }, `one item per ${pipeline.key_attribute}${pipeline.keeps_windows ? " and window" : ", its newest window"}`)),
    h("div", { class: "branch" }, arrow("rejected", "rejected", "down"), node("quarantine", "Quarantine", pipeline.quarantine, rejectedNote)),
    pipeline.on_failure ? node("failure", "On failure", pipeline.on_failure) : null);

  function miniature(open) {
    const map = drawing.querySelector(".minimap");
    const text = JSON.stringify(open.map((view) => [view.low, view.high, view.state]));
    if (map.dataset.text === text) return;
    map.dataset.text = text;
    fill(map, open.map((view) => {
      const piece = h("i", { class: view.state === "blocked" ? "blocked-piece" : "" }, open.length <= 12 ? shard(view.shard_id) : "");
      piece.style.left = `${view.low * 100}%`;
      piece.style.width = `${(view.high - view.low) * 100}%`;
      return piece;
    }));
  }

  // --- shards --------------------------------------------------------------------------------------------------
  function showShards(tick) {
    const text = JSON.stringify(tick.shards.map((view) => [view.shard_id, view.state, view.polled, view.behind_ms, view.iterator_age_ms, view.closed]));
    if (shards.dataset.text === text) return;
    shards.dataset.text = text;
    const children = new Map();
    for (const view of tick.shards) for (const parent of view.parents) children.set(parent, [...(children.get(parent) || []), view.shard_id]);
    fill(shards,
      h("div", { class: "shard-row head", role: "row" }, ["shard", "hash range", "state", "read", "behind", "age of last batch"].map((name) => h("span", { role: "columnheader" }, name))),
      tick.shards.map((view) => {
        const range = h("i", {});
        range.style.left = `${view.low * 100}%`;
        range.style.width = `${Math.max(0.5, (view.high - view.low) * 100)}%`;
        const lineage = [view.parents.length ? `from ${view.parents.map(shard).join(" + ")}` : "", children.has(view.shard_id) ? `→ ${children.get(view.shard_id).map(shard).join(", ")}` : ""].filter(Boolean).join(" ");
        return h("div", { class: `shard-row ${view.closed ? "closed" : ""}`, role: "row" },
          h("span", { class: "shard-name", title: view.shard_id, role: "cell" }, shard(view.shard_id), lineage ? h("em", {}, lineage) : null),
          h("span", { class: "range", title: `${(view.low * 100).toFixed(1)}% to ${(view.high * 100).toFixed(1)}% of the hash keys`, role: "cell" }, range),
          h("span", { role: "cell" }, h("span", { class: "pill", "data-state": view.state }, view.closed && view.state !== "done" ? `${view.state}, closed` : view.state)),
          h("span", { class: "num right", role: "cell" }, count(view.polled)),
          h("span", { class: "num right", role: "cell" }, view.behind_ms === null ? "–" : duration(view.behind_ms)),
          h("span", { class: "num right", role: "cell" }, duration(view.iterator_age_ms)));
      }));
  }

  // --- a record of one's own -----------------------------------------------------------------------------------
  const names = Object.keys(pipeline.examples);
  const data = h("textarea", { id: "put-data", rows: "5", spellcheck: "false", "aria-label": "The record" });
  data.value = pipeline.examples[names[0]] || `{"${pipeline.key_attribute}": 1}`;
  const partition = h("input", { id: "put-key", value: "console", "aria-label": "Partition key", autocomplete: "off", spellcheck: "false" });
  const trace = h("ol", { class: "trace", "aria-live": "polite" });
  const button = h("button", { type: "button", class: "primary", id: "put", onclick: put }, "Put the record");
  let following = 0;

  async function put() {
    const turn = ++following;
    button.disabled = true;
    try {
      const text = data.value;
      const found = await tell("put", { partition_key: partition.value, data: text });
      const steps = [step("done", "Put into the stream", `shard ${shard(found.shard_id)} at ${clock(found.at_ms, true)}`, found.sequence)];
      fill(trace, steps, step("going", "Waiting for the mapping to read it"));
      follow(turn, found, steps);
    } catch (problem) {
      fill(trace, step("bad", "Not put", problem.message));
    } finally { button.disabled = false; }
  }

  function step(kind, title, words = "", mono = "") {
    return h("li", { class: kind }, h("b", {}, title), words ? h("span", {}, words) : null, mono ? h("code", {}, mono) : null);
  }

  async function follow(turn, found, steps) {
    for (let tries = 0; turn === following && tries < 2000; tries += 1) {
      let at;
      try {
        at = await ask("whereabouts", { sequence: found.sequence });
      } catch (problem) {
        fill(trace, steps, step("bad", "Lost sight of it", problem.message));
        return;
      }
      if (turn !== following) return;
      if (at.stage === "rejected") {
        const { rejected } = at;
        fill(trace, steps, h("li", { class: "warn" }, h("b", {}, "In quarantine: ", h("span", { class: "tag reason" }, rejected.reason)),
          h("span", {}, `${rejected.meaning}: ${rejected.detail}`), h("code", {}, pretty(rejected))));
        return;
      }
      if (at.stage === "settled") {
        const { item } = at;
        fill(trace, steps, step("done", "Folded into its window", item.window_start_ms ? `${clock(item.window_start_ms)} – ${clock(item.window_end_ms)}` : ""),
          h("li", { class: "done" }, h("b", {}, "In the table"), h("span", {}, `${pipeline.key_attribute} ${item.key}, window ${moment(item.window_start_ms)}`),
            h("span", { class: "num" }, Object.entries(item.totals).map(([name, value]) => `${name} ${exact(value)}`).join(" · "))));
        return;
      }
      if (at.stage === "folded") {
        const { call } = at;
        fill(trace, steps, step("done", "Read and folded", `by call ${call.request_id.slice(0, 8)}${call.window ? `, window ${clock(call.window[0])} – ${clock(call.window[1])}` : ""}`),
          step("going", "Waiting for the window to close", call.window && app.tick ? `${duration(Math.max(0, call.window[1] - app.tick.now_ms))} left` : ""));
      } else if (at.stage === "failed") {
        fill(trace, steps, step("bad", "Its call failed and will be made again", `${at.call.error_type}: ${at.call.error_message}`));
      }
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
  }

  const element = h("div", { class: "view pipeline" },
    card("Pipeline", h("span", {}, app.pipeline.endpoint ? "rates over the last ten seconds" : "rates over the last minutes"), drawing),
    h("div", { class: "two" },
      card("Shards", "", shards),
      card("Put a record", "clean or not, and watch where it ends up", h("div", { class: "put" },
        h("div", { class: "put-tools" }, names.map((name) => h("button", { type: "button", class: "chip", "data-example": name, onclick: () => { data.value = pipeline.examples[name]; } }, name))),
        data,
        h("div", { class: "put-row" }, h("label", { for: "put-key" }, "partition key"), partition, button),
        trace))));

  return {
    element,
    repaint: () => { delete shards.dataset.text; },
    show: (tick) => {
      for (const [name, { value, line }] of flows) {
        const now = tick.rates[name];
        say(value, rate(now));
        line.classList.toggle("moving", now > 0);
      }
      say(drawing.querySelector("#shard-count"), `${count(tick.shards.filter((view) => !view.closed).length)} open shards · ${rate(tick.rates.incoming)} put`);
      say(drawing.querySelector("#function-errors"), `${rate(tick.rates.errors)} errors · ${rate(tick.rates.throttles)} throttled`);
      drawing.querySelector("#function-errors").classList.toggle("bad", tick.rates.errors > 0);
      miniature(tick.shards.filter((view) => !view.closed).slice(0, 64));
      say(tableNote, `${count(tick.items)} items · ${count(tick.keys)} keys`);
      say(rejectedNote, `${count(tick.rejected)} records`);
      showShards(tick);
    },
  };
}
