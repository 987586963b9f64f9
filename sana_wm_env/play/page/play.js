// Puts the parts together: what the server tells, what the visitor does, what is shown.

import { Futures } from "./futures.js";
import { isTyping, Keys } from "./keys.js";
import { Link } from "./link.js";
import { Plan } from "./map.js";
import { Screen } from "./screen.js";
import { Strip } from "./strip.js";

const $ = (id) => document.getElementById(id);
const state = { session: null, size: [64, 64], pictures: true, chunks: new Map(), presses: [], latency: [], paused: false, agent: null, recording: false, present: 0 };

// ---- the parts

const link = new Link(told, shown, lost);
const screen = new Screen(draw, begun, (chunk) => link.tell({ kind: "ended", epoch: screen.epoch, chunk }));
const keys = new Keys(steer, (message) => link.tell({ kind: "release", ...message }));
const plan = new Plan($("map"));
const futures = new Futures($("futures"), (future) => link.tell({ kind: "pick", future }));
const strip = new Strip($("strip"), (id) => of(`moment/${id}`), go, preview);
const of = (path) => new URL(`of/${state.session}/${path}`, document.baseURI).href;

function steer(message, pressed) {
  const now = performance.now();
  if (pressed && message.tapped.length) state.presses.push({ seq: message.seq, at: message.at });
  if (pressed && screen.current) screen.hold(screen.showing + 1, 1, now + 1000); // until the server says whether it counts there
  link.tell({ kind: "control", ...message, showing: screen.showing });
}

// ---- what the server tells

const TOLD = {
  loading: ({ stage, seconds }) => veil(stage, seconds > 3 ? `${seconds.toFixed(0)} s` : ""),
  failed: ({ text }) => veil("The world cannot be opened", text, true),
  busy: ({ text }) => {
    veil("It is full", `${text}. This page tries again by itself.`);
    link.full = true;
  },
  taken: () => {
    link.gone = true;
    veil("This walk goes on in another tab", "Reload this page to have it here.", true);
  },
  hello: hello,
  empty: () => veil("Drop a picture to begin", "This world has no pictures of its own.", true),
  welcome: welcome,
  received: received,
  applied: applied,
  memory: ({ gone, bytes }) => {
    strip.thin(gone);
    state.bytes = bytes;
  },
  jumped: ({ epoch, present, chunk, asked }) => {
    leave(epoch, chunk);
    futures.close();
    strip.at(present);
    state.pose = strip.line().at(-1)?.pose;
    ways();
    if (asked !== present) toast("That moment was thinned out; this is the last one before it");
  },
  futures: ({ epoch, names, frames }) => {
    leave(epoch, screen.showing);
    futures.open(names, frames, state.size);
    say(`Four futures: ${names.join(", ")}`);
  },
  agent: ({ name }) => setAgent(name),
  plan: showPlan,
  recording: setRecording,
  exported: ({ dataset, steps }) => toast(`Dataset ${dataset}, ${steps} steps: minari.load_dataset("${dataset}")`, false, 12000),
  refused: ({ text }) => {
    $("veil").hidden || veil("Drop a picture to begin", text, true);
    toast(text);
  },
  error: ({ text }) => {
    setPaused(true);
    toast(text);
  },
};

function told(message) {
  TOLD[message.kind]?.(message);
}

function hello({ session, rooms, pictures, agents, size }) {
  Object.assign(state, { session, rooms, pictures, size, agents });
  sessionStorage.setItem("sana-wm-session", session);
  link.tries = 0;
  link.full = false;
  for (const id of ["imagined", "truth"]) [$(id).height, $(id).width] = size;
  document.documentElement.style.setProperty("--shape", size[1] / size[0]);
  $("rooms-button").hidden = $("elsewhere").hidden = !rooms;
  $("picture-button").hidden = !pictures;
  $("branch-noises").hidden = !pictures;
  $("imagined-name").textContent = pictures ? "imagined" : "exact";
  $("agent").replaceChildren(...Object.entries(agents).map(([name, about]) => new Option(`${name}: ${about}`, name)));
  smooth();
}

function welcome(message) {
  Object.assign(state, { bytes: message.bytes, cap: message.cap, room: message.room, seed: message.seed });
  keys.seq = Math.max(keys.seq, message.seq);
  const chunk = message.moments.find((m) => m.id === message.present)?.chunk ?? 0;
  leave(message.epoch, chunk);
  futures.close();
  $("world").textContent = message.world + (message.task === "free" ? "" : ` · ${message.task}`);
  if (!isTyping(document.activeElement)) $("prompt").value = message.caption;
  $("truth-switch").parentElement.hidden = !message.knowsTruth;
  $("truth-switch").checked = message.truth && message.knowsTruth;
  $("truth-figure").hidden = !$("truth-switch").checked;
  $("walls-switch").parentElement.hidden = !message.knowsTruth;
  $("walls-switch").checked = message.walls;
  $("flow-switch").checked = message.flow;
  $("task-card").hidden = !message.goal;
  if (message.goal) $("goal").src = message.goal;
  plan.reset(message.map);
  strip.reset(message.moments, message.present);
  state.pose = strip.line().at(-1)?.pose;
  ways();
  setAgent(message.agent);
  setRecording({ on: message.recording });
  setPaused(false, false);
  $("veil").hidden = true;
  say(`A walk begins. ${message.caption}`);
}

/** The first receipt: in which chunk a control counts. */
function received({ seq, epoch, chunk, take }) {
  if (epoch !== screen.epoch) return;
  state.receipt = { seq, chunk, take };
  if (take > 0 && chunk === screen.showing + 1) screen.hold(chunk, take, performance.now() + 1500);
  else screen.free();
}

/** The second receipt: a chunk was imagined with it. */
function applied(message) {
  if (message.epoch !== screen.epoch) return;
  const before = state.chunks.get(message.chunk);
  state.chunks.set(message.chunk, message);
  state.step = message.ms;
  strip.add(message.moment, before && before.epoch === message.epoch ? before.moment.id : undefined);
}

function leave(epoch, chunk) {
  screen.reset(epoch, chunk);
  state.chunks.clear();
  state.presses.length = 0;
  state.receipt = null;
}

function lost() {
  if (link.gone) return;
  setPaused(false, false);
  link.tries += 1;
  if (!link.full) veil("The server has gone", "This page tries to come back.");
  setTimeout(() => link.open(), Math.min(5000, link.full ? 3000 : 300 * link.tries));
}

// ---- frames

const STREAMS = [(frame) => screen.push(frame), (frame) => futures.push(frame), still];

function shown(frame) {
  STREAMS[frame.stream](frame);
}

function still(frame) {
  if (frame.epoch !== screen.epoch) return;
  paint(frame);
}

function draw(frame) {
  paint(frame);
  plan.step(frame.pose);
  state.pose = frame.pose;
}

function paint({ pictures, pose }) {
  $("imagined").getContext("2d").drawImage(pictures[0], 0, 0);
  $("truth-figure").hidden = pictures.length < 2;
  if (pictures[1]) $("truth").getContext("2d").drawImage(pictures[1], 0, 0);
  state.pose = pose;
}

/** The first picture of a chunk is on the screen. */
function begun(chunk, take, now) {
  link.tell({ kind: "begun", epoch: screen.epoch, chunk });
  document.body.classList.add("walked");
  const message = state.chunks.get(chunk);
  if (!message) return;
  state.presses = state.presses.filter(({ seq, at }) => {
    if (seq > message.seq) return true;
    state.latency.push(now - at);
    return false;
  });
  showTask(message);
  for (const old of state.chunks.keys()) if (old < chunk - 1) state.chunks.delete(old);
}

function preview(id) {
  const image = new Image();
  image.onload = () => $("imagined").getContext("2d").drawImage(image, 0, 0, state.size[1], state.size[0]);
  image.src = of(`moment/${id}`);
}

// ---- what the visitor does

function go(moment) {
  if (moment === undefined || moment === null) return;
  link.tell({ kind: "go", moment });
}

function ways() {
  plan.setWays(strip.line().map((m) => m.pose), strip.otherWays().map((line) => line.map((m) => m.pose)));
}

function setPaused(on, tells = true) {
  state.paused = on;
  $("pause").setAttribute("aria-pressed", on);
  $("pause").querySelector("span").textContent = on ? "Go on" : "Pause";
  $("pause").querySelector("i").className = on ? "icon-play" : "icon-pause";
  if (tells) link.tell({ kind: "set", name: "paused", on });
}

function setAgent(name) {
  state.agent = name;
  document.body.classList.toggle("handed", !!name);
  if (name) $("agent").value = name;
  $("hand").textContent = name ? "Take back" : "Hand over";
  $("hand").classList.toggle("on", !!name);
  if (!name) $("plan").replaceChildren();
  if (name) say(`${name} has the controls`);
}

function setRecording({ on, frames }) {
  const ended = state.recording && !on && frames;
  state.recording = on;
  $("record").setAttribute("aria-pressed", on);
  $("record").querySelector("span").textContent = on ? "Stop" : "Record";
  if (ended) {
    download("video.mp4");
    setTimeout(() => download("video.npz"), 600);
    toast(`A video of ${frames} frames, and its poses`);
  }
}

function setTruth(on) {
  if ($("truth-switch").parentElement.hidden) return;
  $("truth-switch").checked = on;
  if (!on) $("truth-figure").hidden = true;
  link.tell({ kind: "set", name: "truth", on });
}

function branch(by) {
  if (futures.isOpen) return;
  link.tell({ kind: "futures", by });
}

function download(path) {
  const anchor = Object.assign(document.createElement("a"), { href: of(path), download: "" });
  document.body.append(anchor);
  anchor.click();
  anchor.remove();
}

async function send(file) {
  const isPicture = file.type.startsWith("image/");
  veil(isPicture ? "Imagining your picture" : "Opening the session");
  const prompt = encodeURIComponent($("prompt").value);
  const answer = await fetch(of(isPicture ? `picture?fov=65&prompt=${prompt}` : "open"), { method: "POST", body: file });
  if (answer.ok) return;
  $("veil").hidden = true;
  const { error } = await answer.json().catch(() => ({ error: "The server did not take it" }));
  toast(error);
}

function pickFile(accept) {
  $("file").accept = accept;
  $("file").value = "";
  $("file").click();
}

function openRooms() {
  const list = $("room-list");
  if (!list.childElementCount) {
    const names = [...Array(state.rooms).keys(), "held-out"];
    list.append(...names.map((room) => {
      const button = document.createElement("button");
      button.setAttribute("aria-label", room === "held-out" ? "A room that training never saw" : `Room ${room}`);
      if (room === "held-out") button.append(Object.assign(document.createElement("i"), { textContent: "?" }));
      else button.append(Object.assign(new Image(), { src: `rooms/${room}`, alt: "", loading: "lazy" }));
      button.append(Object.assign(document.createElement("span"), { textContent: room === "held-out" ? "unseen" : room }));
      button.addEventListener("click", () => {
        $("rooms").close();
        link.tell({ kind: "start", room, seed: null, prompt: null });
      });
      return button;
    }));
  }
  $("rooms").showModal();
}

const CLICKS = {
  "help-button": () => $("help").showModal(),
  again: () => link.tell({ kind: "start", room: state.room ?? null, seed: state.seed, prompt: $("prompt").value || null }),
  elsewhere: () => link.tell({ kind: "start", room: null, seed: null, prompt: null }),
  "rooms-button": openRooms,
  "picture-button": () => pickFile("image/*"),
  hand: () => link.tell({ kind: "agent", name: state.agent ? null : $("agent").value }),
  pause: () => setPaused(!state.paused),
  back: () => go(strip.beside(-1)),
  forward: () => go(strip.beside(1)),
  "branch-actions": () => branch("actions"),
  "branch-noises": () => branch("noises"),
  record: () => link.tell({ kind: "record", on: !state.recording }),
  save: () => download("save"),
  open: () => pickFile(".sana,.safetensors,.npz"),
  export: () => link.tell({ kind: "export" }),
};
for (const [id, act] of Object.entries(CLICKS)) $(id).addEventListener("click", act);
$("truth-switch").addEventListener("change", (event) => setTruth(event.target.checked));
$("flow-switch").addEventListener("change", (event) => link.tell({ kind: "set", name: "flow", on: event.target.checked }));
$("walls-switch").addEventListener("change", (event) => link.tell({ kind: "set", name: "walls", on: event.target.checked }));
$("smooth-switch").addEventListener("change", smooth);
$("file").addEventListener("change", () => $("file").files[0] && send($("file").files[0]));

const SHORTCUTS = {
  " ": CLICKS.pause, ",": CLICKS.back, ".": CLICKS.forward, f: () => branch("actions"), n: () => state.pictures && branch("noises"),
  r: CLICKS.record, t: () => setTruth(!$("truth-switch").checked), h: CLICKS["help-button"], "?": CLICKS["help-button"],
};
addEventListener("keydown", (event) => {
  if (isTyping(event.target) || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (document.querySelector("dialog[open]")) return;
  if (futures.isOpen && (/^[1-4]$/.test(event.key) || event.key === "Escape")) {
    link.tell({ kind: "pick", future: event.key === "Escape" ? null : Number(event.key) - 1 });
    event.preventDefault();
    return;
  }
  if (event.key === " " && event.target.closest?.("button, input")) return; // presses that button
  const act = SHORTCUTS[event.key.toLowerCase()];
  if (!act) return;
  event.preventDefault();
  act();
});

addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").hidden = false;
});
addEventListener("dragleave", (event) => event.relatedTarget || ($("drop").hidden = true));
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").hidden = true;
  if (event.dataTransfer.files[0]) send(event.dataTransfer.files[0]);
});

// ---- words

function veil(text, more = "", still = false) {
  $("veil").hidden = false;
  $("veil").classList.toggle("still", still);
  if ($("veil-text").textContent !== text) $("veil-text").textContent = text;
  $("veil-more").textContent = more;
}

function say(text) {
  $("status").textContent = text;
}

function toast(text, bad = true, ms = 6000) {
  const note = Object.assign(document.createElement("p"), { textContent: text });
  $("toasts").append(note);
  setTimeout(() => note.remove(), ms);
}

function smooth() {
  const on = $("smooth-switch").checked || Math.min(...state.size) > 200;
  document.documentElement.classList.toggle("smooth", on);
  try {
    localStorage.setItem("sana-wm-smooth", $("smooth-switch").checked ? "1" : "");
  } catch {}
}

function showTask({ task, terminated, inside }) {
  state.inside = inside;
  if ($("task-card").hidden) return;
  const parts = [];
  if ("distance_m" in task) parts.push(`${task.distance_m.toFixed(2)} m away`);
  if ("angle_rad" in task) parts.push(`${Math.round((180 * task.angle_rad) / Math.PI)}° to turn`);
  $("task").textContent = terminated ? "You are there!" : parts.join(", ");
}

function showPlan({ candidates }) {
  $("plan").replaceChildren(...candidates.map(({ value, pictures }, i) => {
    const row = document.createElement("div");
    row.className = i ? "candidate" : "candidate best";
    row.append(...pictures.map((src) => Object.assign(new Image(), { src, alt: "" })));
    row.append(Object.assign(document.createElement("span"), { textContent: value.toFixed(2) }));
    row.setAttribute("aria-label", `Candidate ${i + 1}, worth ${value.toFixed(2)}`);
    return row;
  }));
}

function meters() {
  const latest = state.latency.at(-1);
  const parts = [];
  if (state.presses.length && state.receipt?.chunk > screen.showing) parts.push(`counts in chunk ${state.receipt.chunk}`);
  if (latest !== undefined) parts.push(`key to picture ${(latest / 1000).toFixed(2)} s`);
  if (state.step !== undefined) parts.push(`chunk ${(state.step / 1000).toFixed(2)} s`);
  if (state.bytes !== undefined) parts.push(`${(state.bytes / 2 ** 20).toFixed(0)} of ${(state.cap / 2 ** 20).toFixed(0)} MiB kept`);
  $("meters").textContent = parts.join(" · ");
  const badges = [];
  if (state.paused) badges.push("paused");
  if (state.recording) badges.push("● recording");
  if (state.agent) badges.push(`${state.agent} walks`);
  if (state.inside) badges.push("inside a wall");
  $("badges").textContent = badges.join("  ");
  if (!state.pose) return;
  const [x, y, z] = [3, 7, 11].map((i) => state.pose[i]);
  const yaw = Math.round((180 * Math.atan2(state.pose[2], state.pose[10])) / Math.PI);
  $("place").textContent = `${x.toFixed(2)} m right, ${z.toFixed(2)} m ahead, ${yaw}°`;
  $("imagined").setAttribute("aria-label", `What the camera sees, ${$("place").textContent} from the start`);
}

// ---- begin

try {
  $("smooth-switch").checked = localStorage.getItem("sana-wm-smooth") === "1";
} catch {}
keys.listen($("imagined"), { stick: $("stick"), eye: $("eye") });
setInterval(meters, 250);
function frame(now) {
  screen.tick(performance.now());
  futures.tick(now);
  keys.tick(now);
  requestAnimationFrame(frame);
}
requestAnimationFrame(frame);
link.open();
window.play = { state, screen, keys, strip, futures, link, plan }; // for tests, and for the curious
