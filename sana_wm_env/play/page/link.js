// The way to the server: JSON both ways, and packed frames from it (messages.py has the layout).

const HEADER = 64;

export class Link {
  /** told(message) is called for each JSON message, shown(frame) for each frame in the order of sending. */
  constructor(told, shown, lost) {
    this.told = told;
    this.shown = shown;
    this.lost = lost;
    this.order = Promise.resolve();
    this.tries = 0;
  }

  open() {
    const session = sessionStorage.getItem("sana-wm-session") || "";
    const address = new URL(`link?session=${session}`, document.baseURI);
    address.protocol = "ws:";
    this.socket = new WebSocket(address);
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = ({ data }) => this.receive(data);
    this.socket.onclose = () => this.lost();
  }

  get isOpen() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  tell(message) {
    if (this.isOpen) this.socket.send(JSON.stringify(message));
  }

  receive(data) {
    if (typeof data === "string") {
      const message = JSON.parse(data);
      // A message about frames must not overtake the frames that were sent before it, which are still being decoded.
      if (message.kind === "received") this.told(message);
      else this.order = this.order.then(() => this.told(message));
      return;
    }
    const frame = unpack(data);
    const decoded = Promise.all(frame.pictures.map((bytes) => createImageBitmap(new Blob([bytes]))));
    this.order = this.order.then(async () => this.shown({ ...frame, pictures: await decoded }));
  }
}

function unpack(data) {
  const view = new DataView(data);
  const count = view.getUint8(12);
  const pose = Array.from({ length: 12 }, (_, i) => view.getFloat32(16 + 4 * i, true));
  const pictures = [];
  let at = HEADER + 4 * count;
  for (let i = 0; i < count; i++) {
    const length = view.getUint32(HEADER + 4 * i, true);
    pictures.push(new Uint8Array(data, at, length));
    at += length;
  }
  return {
    stream: view.getUint8(0),
    take: view.getUint8(1),
    frame: view.getUint16(2, true),
    epoch: view.getUint32(4, true),
    chunk: view.getUint32(8, true),
    pose,
    pictures,
  };
}
