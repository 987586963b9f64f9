// The moments of a session as thumbnails: time to the right, one row for each way that was walked.

const WIDE = 60;
const HIGH = 62;

export class Strip {
  /** address(id) of a thumbnail; go(id) goes to a moment; look(id) shows it large while a finger scrubs. */
  constructor(element, address, go, look) {
    Object.assign(this, { element, address, go, look });
    this.moments = new Map();
    this.buttons = new Map();
    this.present = null;
    this.svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.svg.setAttribute("aria-hidden", "true");
    element.append(this.svg);
    this.listen();
  }

  reset(moments, present) {
    for (const button of this.buttons.values()) button.remove();
    this.moments = new Map();
    this.buttons = new Map();
    for (const moment of moments) this.moments.set(moment.id, { ...moment });
    this.present = present;
    this.layout();
  }

  add(moment, replaces) {
    if (replaces !== undefined) this.drop(replaces);
    this.moments.set(moment.id, { ...moment });
    this.present = moment.id;
    this.layout();
  }

  drop(id) {
    this.moments.delete(id);
    this.buttons.get(id)?.remove();
    this.buttons.delete(id);
  }

  thin(ids) {
    for (const id of ids) {
      if (this.moments.has(id)) this.moments.get(id).kept = false;
      this.buttons.get(id)?.classList.add("thin");
    }
  }

  at(id) {
    this.present = id;
    this.layout();
  }

  /** From the start to a moment. */
  line(id = this.present) {
    const line = [];
    while (id !== null && this.moments.has(id)) {
      line.unshift(this.moments.get(id));
      id = line[0].parent;
    }
    return line;
  }

  /** The line through the present and on, along the youngest moments. */
  throughLine() {
    const line = this.line();
    for (;;) {
      const last = line.at(-1);
      const after = [...this.moments.values()].filter((m) => last && m.parent === last.id);
      if (!after.length) return line;
      line.push(after.at(-1));
    }
  }

  /** Ways that end elsewhere, each from where it left another. */
  otherWays() {
    const parents = new Set([...this.moments.values()].map((m) => m.parent));
    const mine = new Set(this.line().map((m) => m.id));
    return [...this.moments.values()]
      .filter((m) => !parents.has(m.id) && !mine.has(m.id))
      .map((end) => this.line(end.id));
  }

  beside(steps) {
    const line = this.throughLine();
    const place = line.findIndex((m) => m.id === this.present);
    return line[Math.max(0, Math.min(line.length - 1, place + steps))]?.id;
  }

  layout() {
    const rows = new Map();
    const follower = new Set();
    let row = -1;
    for (const moment of this.moments.values()) {
      const parent = this.moments.get(moment.parent);
      if (parent && !follower.has(parent.id)) rows.set(moment.id, rows.get(parent.id));
      else rows.set(moment.id, ++row);
      if (parent) follower.add(parent.id);
    }
    const first = Math.min(...[...this.moments.values()].map((m) => m.chunk), 1e9);
    const mine = new Set(this.line().map((m) => m.id));
    const x = (m) => 8 + WIDE * (m.chunk - first);
    const y = (m) => 6 + HIGH * rows.get(m.id);
    const lines = [];
    for (const moment of this.moments.values()) {
      const button = this.buttons.get(moment.id) ?? this.make(moment);
      button.style.transform = `translate(${x(moment)}px, ${y(moment)}px)`;
      button.classList.toggle("mine", mine.has(moment.id));
      button.classList.toggle("now", moment.id === this.present);
      button.classList.toggle("thin", !moment.kept);
      const parent = this.moments.get(moment.parent);
      if (parent) {
        const [ax, ay, bx, by] = [x(parent) + 52, y(parent) + 26, x(moment), y(moment) + 26];
        lines.push(`<path class="${mine.has(moment.id) ? "mine" : ""}" d="M${ax - 8} ${ay}C${ax + 8} ${ay} ${bx - 12} ${by} ${bx} ${by}"/>`);
      }
    }
    const wide = 80 + WIDE * Math.max(0, ...[...this.moments.values()].map((m) => m.chunk - first));
    this.svg.setAttribute("width", wide);
    this.svg.setAttribute("height", HIGH * (row + 1) + 6);
    this.element.style.setProperty("--rows", row + 1);
    this.svg.innerHTML = lines.join("");
    const line = this.throughLine();
    const place = Math.max(0, line.findIndex((m) => m.id === this.present));
    this.element.setAttribute("aria-valuemax", Math.max(0, line.length - 1));
    this.element.setAttribute("aria-valuenow", place);
    this.element.setAttribute("aria-valuetext", `moment ${place} of ${Math.max(0, line.length - 1)}, ${(1.5 * place).toFixed(1)} seconds`);
    this.reveal();
  }

  reveal() {
    const now = this.moments.get(this.present);
    const button = this.buttons.get(this.present);
    if (!now || !button || this.scrubbing) return;
    const { offsetLeft } = button;
    const [left, top] = button.style.transform.match(/-?[\d.]+/g).map(Number);
    this.element.scrollTo({ left: offsetLeft + left - this.element.clientWidth + 150, top: Math.max(0, top - 8) });
  }

  make(moment) {
    const button = document.createElement("button");
    button.className = "moment";
    button.tabIndex = -1;
    button.dataset.id = moment.id;
    button.setAttribute("aria-label", `Moment after ${moment.chunk} chunks`);
    const image = document.createElement("img");
    image.alt = "";
    image.draggable = false;
    image.loading = "lazy";
    image.src = this.address(moment.id);
    button.append(image, Object.assign(document.createElement("span"), { textContent: `${(1.5 * moment.chunk).toFixed(1)}s` }));
    this.element.append(button);
    this.buttons.set(moment.id, button);
    return button;
  }

  listen() {
    const { element } = this;
    const under = (event) => {
      const button = document.elementFromPoint(event.clientX, event.clientY)?.closest?.(".moment");
      return button ? Number(button.dataset.id) : null;
    };
    element.addEventListener("pointerdown", (event) => {
      const id = under(event);
      if (id === null || event.pointerType === "touch") return;
      this.scrubbing = true;
      this.look(id);
      element.setPointerCapture(event.pointerId);
    });
    element.addEventListener("pointermove", (event) => {
      const id = this.scrubbing ? under(event) : null;
      if (id !== null) this.look(id);
    });
    element.addEventListener("pointerup", (event) => {
      if (!this.scrubbing) return;
      this.scrubbing = false;
      const id = under(event);
      if (id !== null) this.go(id);
    });
    element.addEventListener("click", (event) => {
      const id = under(event); // a finger's tap, or Enter on a moment
      if (id !== null && (event.pointerType === "touch" || event.detail === 0)) this.go(id);
    });
    element.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -5, PageDown: 5, Home: -1e6, End: 1e6 }[event.key];
      if (!steps) return;
      event.preventDefault();
      this.go(this.beside(steps));
    });
  }
}
