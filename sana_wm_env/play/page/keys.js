// What the visitor holds: keyboard, mouse, gamepad, touch. Only the state is told, and what was tapped.

const NAMES = {
  KeyW: "w", KeyA: "a", KeyS: "s", KeyD: "d", KeyI: "i", KeyJ: "j", KeyK: "k", KeyL: "l",
  ArrowUp: "i", ArrowLeft: "j", ArrowDown: "k", ArrowRight: "l",
};
const DEGREES = 0.16; // per pixel that the mouse moves
const DEAD = 0.14; // of a stick
const EVERY = 60; // ms between two messages of mouse and sticks

export function isTyping(target) {
  return target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName))
    && !/^(checkbox|radio|button)$/.test(target.type ?? "");
}

export class Keys {
  /** send({seq, at, held, tapped, look, axes}, pressed) is called when something has changed. */
  constructor(send, release) {
    this.send = send;
    this.release = release;
    this.seq = 0;
    this.down = new Map(); // code -> key
    this.tapped = new Set();
    this.look = [0, 0];
    this.pad = [0, 0, 0, 0];
    this.touch = { stick: [0, 0], eye: [0, 0] };
    this.told = "";
    this.last = 0;
  }

  listen(picture, { stick, eye }) {
    addEventListener("keydown", (event) => this.press(event));
    addEventListener("keyup", (event) => this.lift(event));
    addEventListener("blur", () => this.clear());
    document.addEventListener("visibilitychange", () => document.hidden && this.clear());
    document.addEventListener("focusin", (event) => isTyping(event.target) && this.clear());
    this.mouse(picture);
    this.joystick(stick, "stick");
    this.joystick(eye, "eye");
  }

  press(event) {
    const key = NAMES[event.code];
    if (!key || event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    if (event.code.startsWith("Arrow") && event.target.closest?.("#strip")) return;
    if (document.querySelector("dialog[open]")) return;
    event.preventDefault();
    if (event.repeat || this.down.has(event.code)) return; // auto-repeat is one press
    this.down.set(event.code, key);
    this.tapped.add(key);
    this.report(true, event.timeStamp);
  }

  lift(event) {
    if (this.down.delete(event.code)) this.report(true, event.timeStamp);
  }

  /** The focus is lost: nobody holds anything. */
  clear() {
    this.down.clear();
    this.tapped.clear();
    this.look = [0, 0];
    this.touch = { stick: [0, 0], eye: [0, 0] };
    this.told = "";
    this.release({ seq: ++this.seq, at: performance.now() });
  }

  mouse(picture) {
    let dragging = false;
    picture.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      dragging = true;
      picture.setPointerCapture(event.pointerId);
      picture.focus({ preventScroll: true });
    });
    const stop = () => (dragging = false);
    picture.addEventListener("pointerup", stop);
    picture.addEventListener("pointercancel", stop);
    picture.addEventListener("dblclick", () => picture.requestPointerLock?.()?.catch?.(() => {}));
    picture.addEventListener("pointermove", (event) => {
      const locked = document.pointerLockElement === picture;
      if (!dragging && !locked) return;
      const way = locked ? 1 : -1; // a drag moves the world, a locked mouse the eyes
      this.look[0] += way * event.movementX * DEGREES;
      this.look[1] -= way * event.movementY * DEGREES;
    });
  }

  joystick(element, name) {
    const knob = element.firstElementChild;
    const move = (event) => {
      const box = element.getBoundingClientRect();
      const radius = box.width / 2;
      let x = (event.clientX - box.left) / radius - 1;
      let y = (event.clientY - box.top) / radius - 1;
      const length = Math.max(1, Math.hypot(x, y));
      x /= length;
      y /= length;
      knob.style.transform = `translate(${x * radius * 0.6}px, ${y * radius * 0.6}px)`;
      this.touch[name] = [dead(x), dead(-y)];
    };
    const stop = () => {
      this.touch[name] = [0, 0];
      knob.style.transform = "";
    };
    element.addEventListener("pointerdown", (event) => {
      element.setPointerCapture(event.pointerId);
      move(event);
    });
    element.addEventListener("pointermove", (event) => element.hasPointerCapture(event.pointerId) && move(event));
    element.addEventListener("pointerup", stop);
    element.addEventListener("pointercancel", stop);
  }

  /** Called at every refresh: sticks are polled, and what moves all the time is told now and then. */
  tick(now) {
    const pad = [...(navigator.getGamepads?.() ?? [])].find((one) => one?.connected);
    this.pad = pad ? [dead(pad.axes[0]), dead(-pad.axes[1]), dead(pad.axes[2] ?? 0), dead(-(pad.axes[3] ?? 0))] : [0, 0, 0, 0];
    if (now - this.last < EVERY) return;
    const looked = Math.hypot(...this.look) > 0.2;
    if (looked || JSON.stringify(this.axes()) !== this.told) this.report(false, now);
  }

  axes() {
    const { stick, eye } = this.touch;
    const sum = [this.pad[0] + stick[0], this.pad[1] + stick[1], this.pad[2] + eye[0], this.pad[3] + eye[1]];
    return sum.map((value) => Math.round(100 * Math.max(-1, Math.min(1, value))) / 100);
  }

  report(pressed, at) {
    const axes = this.axes();
    this.told = JSON.stringify(axes);
    this.last = performance.now();
    const message = {
      seq: ++this.seq,
      at: Math.round(10 * at) / 10,
      held: [...new Set(this.down.values())],
      tapped: [...this.tapped],
      look: this.look.map((value) => Math.round(100 * Math.max(-180, Math.min(180, value))) / 100),
      axes,
    };
    this.tapped.clear();
    this.look = [0, 0];
    this.send(message, pressed);
  }
}

function dead(value) {
  return Math.abs(value) < DEAD ? 0 : value;
}
