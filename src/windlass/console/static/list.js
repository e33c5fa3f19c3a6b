// A list of any length: only the rows in sight are in the page, and only the pages around them are fetched.
//
// 1. What is in sight can be chosen: rows stay, in the page and here, until the rows that replace them have come.
// 2. Of two questions the later one counts: an answer to an earlier one is dropped, with what it would have told.
// 3. Nothing moves under who is reading: what the clock asked for is dropped too, if somebody has begun meanwhile.
import { h, fill } from "./dom.js";

const PAGE = 100;

export class VirtualList {
  // fetchPage(offset, limit) → {total, rows}; onanswer(answer) when its rows are taken, before they are drawn;
  // draw(row) → children of the row; onpick(row) when one is chosen.
  constructor({ label, head, draw, fetchPage, onanswer, onpick, identity, empty, rowHeight = 30, rowClass = () => "" }) {
    Object.assign(this, { draw, fetchPage, onanswer, onpick, identity, rowHeight, rowClass, label });
    this.pages = new Map();
    this.asked = new Set();
    this.total = 0;
    this.turn = 0;
    this.picked = null;
    this.name = label.toLowerCase().replaceAll(" ", "-");
    // By place, not by element: a row may be drawn anew between the press and the release.
    this.space = h("div", { class: "list-space", onclick: (event) => {
      this.pick(Math.floor((event.clientY - this.space.getBoundingClientRect().top) / this.rowHeight));
    } });
    this.scroller = h("div", {
      class: "list", role: "listbox", tabindex: "0", "aria-label": label,
      onscroll: () => this.later(), onkeydown: (event) => this.key(event),
    }, this.space);
    this.empty = h("p", { class: "empty", hidden: true }, empty);
    this.head = h("div", { class: "list-head", "aria-hidden": "true" }, head.map((text) => h("span", {}, text)));
    this.element = h("div", { class: "list-frame" }, this.head, this.scroller, this.empty);
    new ResizeObserver(() => this.later()).observe(this.scroller);
  }

  // Something may have changed: what is in sight is asked for again. False where that was dropped.
  refresh() {
    const held = this.held();
    return this.read(() => !held && this.held());
  }

  // Another question: from the top.
  restart() {
    this.scroller.scrollTop = 0;
    return this.read(() => false);
  }

  async read(isUnwelcome) {
    const turn = ++this.turn;
    const answers = [];
    const fresh = new Map();
    for (const page of this.sight().pages) {
      const answer = await this.fetchPage(page * PAGE, PAGE);
      if (turn !== this.turn) return false;
      if (isUnwelcome()) {
        this.later(); // what was missing and asked for before this turn was dropped with it
        return false;
      }
      answers.push(answer);
      fresh.set(page, answer.rows);
    }
    this.pages = fresh;
    answers.forEach((answer) => this.take(answer));
    this.render();
    return true;
  }

  take(answer) {
    this.total = answer.total;
    this.onanswer(answer);
  }

  // Whether somebody is reading: then nothing may move under his eyes.
  held() {
    return this.picked !== null || this.scroller.scrollTop > 4;
  }

  letGo() {
    this.picked = null;
    this.scroller.removeAttribute("aria-activedescendant");
    this.render();
  }

  sight() {
    const top = this.scroller.scrollTop;
    const rows = Math.ceil(this.scroller.clientHeight / this.rowHeight) + 8;
    const end = Math.max(0, this.total - 1);
    const first = Math.min(end, Math.max(0, Math.floor(top / this.rowHeight) - 4));
    const last = Math.min(end, first + rows);
    const pages = [];
    for (let page = Math.floor(first / PAGE); page <= Math.floor(last / PAGE); page += 1) pages.push(page);
    return { first, last, pages };
  }

  later() {
    if (this.due) return;
    this.due = requestAnimationFrame(() => {
      this.due = null;
      this.render();
      if (this.sight().pages.some((page) => !this.pages.has(page))) this.fetchMissing();
    });
  }

  async fetchMissing() {
    const turn = this.turn;
    for (const page of this.sight().pages) {
      if (this.pages.has(page) || this.asked.has(page)) continue;
      this.asked.add(page);
      try {
        const answer = await this.fetchPage(page * PAGE, PAGE);
        if (turn !== this.turn) return;
        this.pages.set(page, answer.rows);
        this.take(answer);
      } finally {
        this.asked.delete(page);
      }
    }
    this.render();
  }

  row(index) {
    return (this.pages.get(Math.floor(index / PAGE)) || [])[index % PAGE];
  }

  render() {
    this.empty.hidden = this.total > 0;
    if (this.picked !== null) this.scroller.setAttribute("aria-activedescendant", `${this.name}-picked`);
    if (this.fits) this.scroller.style.height = `${Math.min(this.fits, Math.max(4, this.total)) * this.rowHeight}px`;
    this.space.style.height = `${Math.min(this.total * this.rowHeight, 16000000)}px`;
    const { first, last } = this.sight();
    const rows = [];
    for (let index = first; index <= last && index < this.total; index += 1) {
      const row = this.row(index);
      const name = row ? this.identity(row) : "";
      const isPicked = row && name === this.picked;
      const element = h("div", {
        class: `row ${row ? this.rowClass(row) : "unread"} ${isPicked ? "picked" : ""}`,
        role: "option", id: isPicked ? `${this.name}-picked` : null,
        "aria-posinset": String(index + 1), "aria-setsize": String(this.total), "aria-selected": isPicked ? "true" : "false",
      }, row ? this.draw(row) : null);
      element.style.transform = `translateY(${index * this.rowHeight}px)`;
      rows.push(element);
    }
    fill(this.space, rows);
  }

  pick(index) {
    const row = this.row(index);
    if (!row) return;
    this.index = index;
    this.picked = this.identity(row);
    this.render();
    if (this.onpick) this.onpick(row);
  }

  at() {
    const { first, last } = this.sight();
    for (let index = first; index <= last; index += 1) {
      const row = this.row(index);
      if (row && this.identity(row) === this.picked) return index;
    }
    return this.index ?? -1;
  }

  key(event) {
    const page = Math.max(1, Math.floor(this.scroller.clientHeight / this.rowHeight) - 1);
    const moves = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: page, PageUp: -page, Home: -1e9, End: 1e9 };
    const by = moves[event.key];
    if (by === undefined || event.metaKey || event.ctrlKey) return;
    event.preventDefault();
    event.stopPropagation();
    const index = Math.min(Math.max(0, this.at() + by), this.total - 1);
    const top = index * this.rowHeight;
    const view = this.scroller;
    if (top < view.scrollTop) view.scrollTop = top;
    if (top + this.rowHeight > view.scrollTop + view.clientHeight) view.scrollTop = top + this.rowHeight - view.clientHeight;
    this.index = index;
    this.pick(index);
  }
}
