// Charts over time, by uPlot, in the page's own colours.
import { h, fill, clock, day, parts } from "./dom.js";

const SERIES = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7", "--c8"];

export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

export function seriesColour(index) {
  return colour(SERIES[index % SERIES.length]);
}

const two = (number) => String(number).padStart(2, "0");

function ticks(_, splits, __, ___, step) {
  return splits.map((seconds) => {
    if (seconds === null) return "";
    const [, month, date, hour, minute, second] = parts(seconds * 1000);
    if (hour === 0 && minute === 0 && second === 0) return `${two(month)}-${two(date)}`;
    return step < 60 ? `${two(hour)}:${two(minute)}:${two(second)}` : `${two(hour)}:${two(minute)}`;
  });
}

export class Chart {
  // lines: [{label, colour, fill, dash, width, points, band}] ; format(value) for axis and legend
  constructor({ label, height = 150, format, sync, lines = [], empty = "nothing yet", minimum = 1, range = null, span = null }) {
    Object.assign(this, { label, height, format, sync, lines, minimum, range, span });
    this.data = [[]];
    this.key = h("div", { class: "key" });
    this.stage = h("div", { class: "stage", role: "img", "aria-label": label });
    this.stage.style.minHeight = `${height}px`;
    this.empty = h("p", { class: "chart-empty" }, empty);
    this.element = h("div", { class: "chart" }, this.key, this.stage, this.empty);
    new ResizeObserver(() => this.resize()).observe(this.stage);
  }

  show(data, lines = this.lines) {
    const shape = JSON.stringify(lines.map((line) => [line.label, line.colour, line.points]));
    this.data = data;
    this.lines = lines;
    this.empty.hidden = data[0].length > 0;
    if (!this.plot || shape !== this.shape) {
      this.shape = shape;
      this.draw();
    } else {
      this.plot.setData(data);
    }
    this.legend(this.plot ? this.plot.cursor.idx : null);
  }

  // From the first to the last, at least a few steps apart, so that one value does not stand alone in years.
  across(low, high) {
    if (low === null || low === undefined) return [Date.now() / 1000 - 60, Date.now() / 1000];
    const least = this.span || 60;
    if (this.data[0].length === 1) return [this.data[0][0] - least / 2, this.data[0][0] + least / 2];
    return high - low >= least ? [low, high] : [high - least, high];
  }

  // The theme or the clock has changed.
  redraw() {
    if (this.plot) this.draw();
  }

  resize() {
    const width = this.stage.clientWidth;
    if (!width) return;
    if (!this.plot) this.draw();
    else if (this.plot.width !== width) this.plot.setSize({ width, height: this.height });
  }

  draw() {
    const width = this.stage.clientWidth;
    if (!width || !this.lines.length) return;
    if (this.plot) this.plot.destroy();
    const axis = {
      stroke: colour("--dim"), font: "11px system-ui, sans-serif",
      grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false },
    };
    this.plot = new window.uPlot({
      width, height: this.height,
      padding: [8, 26, 0, 0],
      legend: { show: false },
      cursor: { sync: this.sync ? { key: this.sync } : undefined, points: { size: 7 }, drag: { x: false, y: false }, y: false },
      scales: { x: { time: true, range: (_, low, high) => this.across(low, high) }, y: { range: this.range || ((_, low, high) => [Math.min(0, low ?? 0), Math.max(this.minimum, (high ?? 0) * 1.08)]) } },
      axes: [
        { ...axis, values: ticks, space: 58, size: 22, gap: 4 },
        { ...axis, values: (_, splits) => splits.map((value) => this.format(value)), size: 54, space: 36, gap: 6 },
      ],
      series: [{}, ...this.lines.map((line, index) => {
        const stroke = line.colour ? colour(line.colour) : seriesColour(index);
        return {
          label: line.label, stroke, width: line.width || 1.5, dash: line.dash, spanGaps: line.spanGaps || false,
          fill: line.fill ? stroke + "1f" : undefined,
          points: line.points ? { show: true, size: 5, fill: stroke } : { show: false },
          paths: line.stepped ? window.uPlot.paths.stepped({ align: 1 }) : undefined,
        };
      })],
      hooks: { setCursor: [(plot) => this.legend(plot.cursor.idx)] },
    }, this.data, fill(this.stage));
  }

  legend(index) {
    const times = this.data[0];
    const at = index ?? times.length - 1;
    const when = index === null || index === undefined || times[at] === undefined ? "" : clock(times[at] * 1000);
    fill(this.key, this.lines.map((line, position) => {
      const dot = h("i", {});
      dot.style.background = line.colour ? colour(line.colour) : seriesColour(position);
      const values = this.data[position + 1] || [];
      let value = values[at];
      for (let back = at; index === null && value === null && back >= 0 && back > at - 3; back -= 1) value = values[back];
      return h("span", { class: "key-item" }, dot, h("span", { class: "key-name" }, line.label),
        h("b", {}, value === null || value === undefined ? "–" : this.format(value)));
    }), h("span", { class: "key-when", title: when ? day(times[at] * 1000) : "" }, when));
  }
}
