// Shows chunks at 16 frames per second, each frame once and in order, from a buffer of two chunks at most.

export const FRAMES = 24;
const MS = 1000 / 16;

export class Screen {
  /** draw(frame) puts a frame on the screen; begun(chunk, take) and ended(chunk) tell the server where we are. */
  constructor(draw, begun, ended) {
    Object.assign(this, { draw, begun, ended });
    this.log = []; // [epoch, chunk, frame, time] of the last frames shown, for tests and meters
    this.reset(0, 0);
  }

  /** A jump: nothing that is buffered will be shown. */
  reset(epoch, chunk) {
    this.epoch = epoch;
    this.showing = chunk; // the newest chunk that was begun
    this.waiting = new Map(); // chunk -> {take, frames}
    this.current = null; // {chunk, frames, start, last}
    this.end = 0; // when the last chunk ended
    this.held = null;
  }

  /** Do not begin a chunk before this take of it is here, nor wait for it beyond `until`. */
  hold(chunk, take, until) {
    this.held = { chunk, take, until };
  }

  free() {
    this.held = null;
  }

  push(frame) {
    if (frame.epoch !== this.epoch) return;
    if (this.current?.chunk === frame.chunk) {
      if (frame.take === this.current.take) this.current.frames.push(frame);
      return;
    }
    if (frame.chunk <= this.showing) return;
    let entry = this.waiting.get(frame.chunk);
    if (!entry || entry.take < frame.take) {
      entry = { take: frame.take, frames: [] };
      this.waiting.set(frame.chunk, entry);
    }
    if (entry.take === frame.take) entry.frames.push(frame);
  }

  get depth() {
    let frames = this.current?.frames.length ?? 0;
    for (const entry of this.waiting.values()) frames += entry.frames.length;
    return frames;
  }

  /** Called at every refresh of the display; draws one frame at most. */
  tick(now) {
    if (!this.current && !this.next(now)) return;
    const { current } = this;
    const frame = current.frames[0];
    if (frame) {
      const due = current.start + frame.frame * MS;
      if (now < due) return;
      if (now - due > 1.5 * MS) current.start += now - due; // it came late: go on from now, skip nothing
      current.frames.shift();
      current.last = frame.frame;
      this.log.push([frame.epoch, frame.chunk, frame.frame, now]);
      if (this.log.length > 4000) this.log.splice(0, 2000);
      this.draw(frame);
    } else if (current.last === FRAMES - 1 && now >= current.start + FRAMES * MS) {
      this.end = current.start + FRAMES * MS;
      this.current = null;
      this.ended(current.chunk);
      this.tick(now);
    }
  }

  next(now) {
    const chunk = this.showing + 1;
    const entry = this.waiting.get(chunk);
    if (!entry?.frames.length) return false;
    const { held } = this;
    if (held && held.chunk === chunk && entry.take < held.take && now < held.until) return false;
    this.waiting.delete(chunk);
    this.held = null;
    this.showing = chunk;
    const start = now - this.end < 1.5 * MS ? this.end : now;
    this.current = { ...entry, chunk, start, last: -1 };
    this.begun(chunk, entry.take, now);
    return true;
  }
}
