// Four futures side by side, again and again, until one is chosen.

const MS = 1000 / 16;

export class Futures {
  constructor(element, pick) {
    Object.assign(this, { element, pick });
    this.close();
  }

  open(names, frames, size) {
    this.frames = [];
    this.total = frames;
    this.start = 0;
    this.element.replaceChildren(...names.map((name, i) => this.make(name, i, size)));
    this.element.hidden = false;
    this.element.querySelector("button").focus({ preventScroll: true });
  }

  get isOpen() {
    return !this.element.hidden;
  }

  close() {
    this.element.hidden = true;
    this.element.replaceChildren();
    this.frames = [];
  }

  make(name, i, [height, width]) {
    const button = document.createElement("button");
    button.setAttribute("aria-label", `Future ${i + 1}: ${name}`);
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const caption = document.createElement("span");
    caption.innerHTML = `<kbd>${i + 1}</kbd> `;
    caption.append(name);
    button.append(canvas, caption);
    button.addEventListener("click", () => this.pick(i));
    return button;
  }

  push(frame) {
    this.frames[frame.frame] = frame.pictures;
  }

  tick(now) {
    if (!this.isOpen || !this.frames.length) return;
    this.start ||= now;
    const pause = 12; // frames that the last one is held
    const at = Math.floor((now - this.start) / MS) % (this.total + pause);
    const pictures = this.frames[Math.min(at, this.frames.length - 1)];
    if (!pictures || pictures === this.drawn) return;
    this.drawn = pictures;
    this.element.querySelectorAll("canvas").forEach((canvas, i) => canvas.getContext("2d").drawImage(pictures[i], 0, 0));
  }
}
