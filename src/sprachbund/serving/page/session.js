// Listening: the microphone on one side, the live session on the other.

import { askKey } from "./api.js";
import { Live } from "./live.js";
import { Microphone } from "./microphone.js";

const LONG_PAUSE = "The pause was so long that the service ended the session. Press Listen to go on behind the text";

export class Listening {
  /**
   * @param on {state(name), message(object), level(0..1), lost(seconds), closed(error | null)}
   * @param start (sampleRate) => the first message
   */
  constructor(start, on) {
    this.start = start;
    this.on = on;
    this.paused = false;
    this.early = [];
    this.state = "asking";
    this.microphone = new Microphone((samples, level) => this.hear(samples, level), () => this.unplugged());
  }

  async open(deviceId) {
    this.notify("asking");
    await this.microphone.open(deviceId);
    if (this.over) return this.microphone.close();
    this.connect();
  }

  connect() {
    this.live = new Live(this.start(this.microphone.sampleRate), {
      state: (state) => this.notify(state),
      message: (message) => this.on.message(message),
      lost: (seconds) => this.on.lost(seconds),
      closed: (error) => this.closed(error),
    });
    for (const samples of this.early.splice(0)) this.live.send(samples);
  }

  hear(samples, level) {
    if (this.paused) return;
    this.on.level(level);
    if (this.live) this.live.send(samples);
    else this.early.push(samples); // the first frames may come before the microphone is said to be open
  }

  pause(paused) {
    this.paused = paused;
    this.notify(this.state);
  }

  notify(state) {
    this.state = state;
    this.on.state(this.paused && state === "live" ? "paused" : state);
  }

  unplugged() {
    this.on.message({ type: "notice", kind: "audio", message: "The microphone was unplugged", lost_s: 0 });
    this.stop();
  }

  /** No more sound; the rest of the text still comes. A second call ends at once. */
  async stop() {
    if (!this.live || this.stopping) return this.closed(null);
    this.stopping = true;
    this.paused = false;
    await this.microphone.close();
    this.live.stop();
  }

  async closed(error) {
    if (this.over) return;
    if (error?.status === 408 && this.paused) error = new Error(LONG_PAUSE);
    if (error?.status === 401 && !this.live.session) return this.againWithKey(error);
    this.over = true;
    this.live?.abandon();
    await this.microphone.close();
    this.on.closed(error);
  }

  async againWithKey(error) {
    try {
      await askKey(error);
      if (!this.stopping) return this.connect();
      this.over = true;
      this.on.closed(null);
    } catch {
      this.live = null;
      this.over = true;
      await this.microphone.close();
      this.on.closed(error);
    }
  }
}
