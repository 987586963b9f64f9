// The room from above, the way so far, and where the camera looks. Without a room: the way on squared paper.

const HALF_VIEW = Math.atan(0.5 / 0.65);

export class Plan {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.reset(null);
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  /** map: what `map_of` returned; null where nobody knows the room. */
  reset(map) {
    this.map = map;
    this.start = map ? map.start : [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]];
    this.way = [];
    this.others = [];
    this.pose = null;
    this.draw();
  }

  /** Paths of poses (12 numbers in rows each): the way to the present, and ways that were left. */
  setWays(way, others) {
    this.way = way.map((pose) => this.place(pose));
    this.others = others.map((line) => line.map((pose) => this.place(pose)));
    this.pose = way.at(-1) ?? null;
    this.draw();
  }

  step(pose) {
    this.pose = pose;
    this.way.push(this.place(pose));
    this.draw();
  }

  /** x to the right and z up, in the room's frame. */
  place(pose) {
    const point = [pose[3], pose[7], pose[11]];
    return [0, 2].map((row) => this.start[row].slice(0, 3).reduce((sum, v, i) => sum + v * point[i], this.start[row][3]));
  }

  heading(pose) {
    const ahead = [pose[2], pose[6], pose[10]];
    const [x, z] = [0, 2].map((row) => this.start[row].slice(0, 3).reduce((sum, v, i) => sum + v * ahead[i], 0));
    return Math.atan2(x, z);
  }

  bounds() {
    if (this.map) {
      const xs = this.map.air.flatMap((b) => [b[0], b[2]]);
      const zs = this.map.air.flatMap((b) => [b[1], b[3]]);
      return [Math.min(...xs) - 0.2, Math.min(...zs) - 0.2, Math.max(...xs) + 0.2, Math.max(...zs) + 0.2];
    }
    const all = [...this.way, ...this.others.flat(), [0, 0]];
    const [xs, zs] = [all.map((p) => p[0]), all.map((p) => p[1])];
    return [Math.min(...xs) - 1.5, Math.min(...zs) - 1.5, Math.max(...xs) + 1.5, Math.max(...zs) + 1.5];
  }

  draw() {
    const { canvas, context: c } = this;
    const ratio = Math.min(2, devicePixelRatio || 1);
    const width = canvas.clientWidth || 280;
    const height = canvas.clientHeight || 220;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.clearRect(0, 0, width, height);
    const [x0, z0, x1, z1] = this.bounds();
    const scale = Math.min(width / (x1 - x0), height / (z1 - z0));
    const left = (width - scale * (x1 - x0)) / 2;
    const below = (height - scale * (z1 - z0)) / 2;
    const at = ([x, z]) => [left + scale * (x - x0), height - below - scale * (z - z0)];
    const box = ([a, b, d, e]) => {
      const [px, py] = at([a, e]);
      return [px, py, scale * (d - a), scale * (e - b)];
    };
    if (this.map) {
      c.fillStyle = this.map.floor;
      c.globalAlpha = 0.55;
      for (const air of this.map.air) c.fillRect(...box(air));
      c.globalAlpha = 1;
      for (const solid of this.map.solids) {
        c.fillStyle = solid[4];
        c.beginPath();
        c.roundRect(...box(solid), 3);
        c.fill();
      }
    } else {
      c.strokeStyle = "#ffffff12";
      for (let x = Math.ceil(x0); x < x1; x++) line(c, [at([x, z0]), at([x, z1])]);
      for (let z = Math.ceil(z0); z < z1; z++) line(c, [at([x0, z]), at([x1, z])]);
    }
    c.lineJoin = c.lineCap = "round";
    c.lineWidth = 2;
    c.strokeStyle = "#ffffff4d";
    for (const other of this.others) line(c, other.map(at));
    c.strokeStyle = "#ff9d5c";
    c.lineWidth = 2.5;
    line(c, this.way.map(at));
    if (!this.pose) return;
    const here = at(this.place(this.pose));
    const angle = this.heading(this.pose) - Math.PI / 2;
    c.fillStyle = "#ffffff2e";
    c.beginPath();
    c.moveTo(...here);
    c.arc(...here, 1.5 * scale, angle - HALF_VIEW, angle + HALF_VIEW);
    c.fill();
    c.fillStyle = "#ff7a2f";
    c.strokeStyle = "#fff";
    c.beginPath();
    c.arc(...here, 5, 0, 2 * Math.PI);
    c.fill();
    c.stroke();
  }
}

function line(c, points) {
  c.beginPath();
  points.forEach((point, i) => (i ? c.lineTo(...point) : c.moveTo(...point)));
  c.stroke();
}
