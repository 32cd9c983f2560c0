// The WebSocket: events of the Realtime protocol in both directions.

const KEY_PROTOCOL = "openai-insecure-api-key.";
const REASONS = {
  1001: "The server ended the session. Start again to go on.",
  1008: "The server ended the session: this page did not keep up with it.",
  1013: "The server is busy. Please try again in a little while.",
};

export class Connection extends EventTarget {
  // Every server event is dispatched under its own type; `closed` {reason} at the end.

  constructor(model, key) {
    super();
    const url = new URL("/v1/realtime", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    url.searchParams.set("model", model);
    this.url = url;
    this.key = key;
    this.isOpen = false;
  }

  /** Resolves when the session is there. */
  async open() {
    if (this.key && !/^[\w.~-]+$/.test(this.key)) throw new Error("This is not an API key of echat.");
    const protocols = ["realtime", ...(this.key ? [KEY_PROTOCOL + this.key] : [])];
    this.socket = new WebSocket(this.url, protocols);
    this.socket.onmessage = ({ data }) => this.take(JSON.parse(data));
    const created = new Promise((resolve, reject) => {
      this.addEventListener("session.created", resolve, { once: true });
      this.addEventListener("closed", ({ detail }) => reject(new Error(detail.reason)), { once: true });
    });
    this.socket.onclose = ({ code }) => this.closed(code);
    await created;
    this.isOpen = true;
  }

  take(event) {
    this.dispatchEvent(new CustomEvent(event.type, { detail: event }));
  }

  send(type, fields = {}) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type, ...fields }));
  }

  async closed(code) {
    const reason = REASONS[code] ?? (this.isOpen ? "The connection was lost. Start again to go on." : await this.why());
    this.isOpen = false;
    this.dispatchEvent(new CustomEvent("closed", { detail: { reason, code } }));
  }

  /** Browsers hide why a WebSocket was refused; an HTTP request shows the error. */
  async why() {
    try {
      const headers = this.key ? { Authorization: `Bearer ${this.key}` } : {};
      const answer = await fetch("/v1/models", { headers });
      const { error } = await answer.json();
      return error ? `The server refused: ${error.message}.` : "The server did not open a session.";
    } catch {
      return "The server cannot be reached.";
    }
  }

  close() {
    if (this.socket) this.socket.onclose = null;
    this.socket?.close(1000);
    this.isOpen = false;
  }
}
