// The list of rows: only what is in sight is in the document, however many rows there are.

const ENTRY_HEIGHT = 74;
/** Browsers give up on taller elements; beyond it the scroll bar stands for more than a row per step. */
const TALLEST = 12e6;

class List {
  constructor(index, onChoose) {
    this.index = index;
    this.onChoose = onChoose;
    this.shown = [];
    this.chosen = -1;
    this.box = document.getElementById("list");
    this.spacer = document.getElementById("spacer");
    this.window = document.getElementById("window");
    this.box.addEventListener("scroll", () => this.draw(), { passive: true });
    this.box.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.box);
  }

  /** Lists these rows; keeps the place of the chosen one. */
  show(rows, top) {
    this.shown = rows;
    this.height = Math.min(rows.length * ENTRY_HEIGHT, TALLEST);
    this.spacer.style.height = `${Math.max(this.height, 1)}px`;
    if (top) this.box.scrollTop = 0;
    this.draw(true);
  }

  visible() {
    return Math.ceil(this.box.clientHeight / ENTRY_HEIGHT) + 1;
  }

  /** Position of the first entry in sight, and where it is drawn. */
  first() {
    const top = this.box.scrollTop;
    if (this.height < TALLEST) return { position: Math.floor(top / ENTRY_HEIGHT), top: top - (top % ENTRY_HEIGHT) };
    const scrollable = Math.max(1, this.height - this.box.clientHeight);
    const last = Math.max(0, this.shown.length - Math.floor(this.box.clientHeight / ENTRY_HEIGHT));
    return { position: Math.round((top / scrollable) * last), top };
  }

  draw() {
    const { position, top } = this.first();
    const rows = this.shown.slice(position, position + this.visible());
    this.window.style.transform = `translateY(${top}px)`;
    if (!this.shown.length) {
      this.window.replaceChildren(element("p", { class: "empty" }, "No row has all of this."));
      this.spacer.style.height = "100px";
    } else {
      this.window.replaceChildren(...rows.map((row, i) => this.entry(row, position + i)));
    }
    const active = document.getElementById(`entry-${this.chosen}`);
    if (active) this.box.setAttribute("aria-activedescendant", active.id);
    else this.box.removeAttribute("aria-activedescendant");
  }

  entry(row, position) {
    const { ids, verdicts, preview, similarity } = this.index;
    const dots = element("div", { class: "dots", "aria-hidden": "true" });
    for (let tag = 0; tag < 8; tag++) {
      const { label, kept } = verdictOf(verdicts[row], tag);
      dots.append(element("i", { class: label ? (kept ? "kept" : "lost") : "" }));
    }
    const like = similarity[row] === null ? "" : `${(similarity[row] / 10).toFixed(0)} % alike`;
    return element("div", {
      class: "entry", role: "option", id: `entry-${row}`, "aria-selected": String(row === this.chosen),
      "aria-posinset": position + 1, "aria-setsize": this.shown.length, onclick: () => this.choose(row, true),
    },
      element("div", { class: "first" }, element("span", { class: "id" }, ids[row]), element("span", {}, like)),
      element("div", { class: "text" }, preview[row] || "(no question)"),
      dots);
  }

  choose(row, open) {
    this.chosen = row;
    this.draw();
    this.onChoose(row, open);
  }

  /** To the next or an earlier row of the list. */
  move(by) {
    if (!this.shown.length) return;
    const now = this.shown.indexOf(this.chosen);
    const next = Math.min(this.shown.length - 1, Math.max(0, now < 0 ? 0 : now + by));
    this.choose(this.shown[next], false);
    this.reveal(next);
  }

  reveal(position) {
    const { position: first } = this.first();
    const fit = Math.max(1, Math.floor(this.box.clientHeight / ENTRY_HEIGHT));
    if (position > first && position < first + fit) return;
    const wanted = position <= first ? position : position - fit + 1;
    const last = Math.max(1, this.shown.length - fit);
    this.box.scrollTop = this.height < TALLEST ? wanted * ENTRY_HEIGHT : (wanted / last) * (this.height - this.box.clientHeight);
    this.draw();
  }

  key(event) {
    const page = Math.max(1, this.visible() - 2);
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
    if (by !== undefined) {
      event.preventDefault();
      this.move(by);
    } else if (event.key === "Enter" && this.chosen >= 0) {
      event.preventDefault();
      this.onChoose(this.chosen, true);
    }
  }
}
