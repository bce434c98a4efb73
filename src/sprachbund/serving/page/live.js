// One live session over /v1/live: sends sound, hands on messages, comes back after a break.

import { address, currentKey, Refused } from "./api.js";

const KEEP_S = 75; // sound kept to be sent again; the service holds a broken session for a minute
const GIVE_UP_S = 60;
const WAITS_S = [0.3, 1, 2, 3, 5];
const MOST_UNSENT_BYTES = 256 * 1024; // in the browser's own buffer; more waits here

const GONE = "The service did not keep this session after the break. The text so far is kept; start again to go on";
const UNREACHABLE = "The service cannot be reached. Check that it runs, then start again";
const TOO_LONG = "The connection was lost for too long. The text so far is kept; start again to go on";

/** Sound on its way: everything since `start` (a sample's number) is still here. */
class Outbox {
  constructor(sampleRate) {
    this.sampleRate = sampleRate;
    this.frames = [];
    this.start = 0;
    this.next = 0; // first sample not yet sent
    this.end = 0;
  }

  /** Adds samples; returns the seconds of unsent sound that had to go to make room. */
  push(samples) {
    this.frames.push(samples);
    this.end += samples.length;
    while (this.end - this.start > KEEP_S * this.sampleRate) this.start += this.frames.shift().length;
    const lost = Math.max(0, this.start - this.next);
    this.next += lost;
    return lost / this.sampleRate;
  }

  /** Goes on from a sample; returns how many samples before the first one kept are gone. */
  rewind(sample) {
    this.next = Math.max(sample, this.start);
    return Math.max(0, this.start - sample);
  }

  /** The next unsent samples, at most one frame of those pushed; null when all is sent. */
  take() {
    let at = this.start;
    for (const frame of this.frames) {
      if (at + frame.length > this.next) {
        const part = frame.subarray(this.next - at);
        this.next = at + frame.length;
        return part;
      }
      at += frame.length;
    }
    return null;
  }
}

export class Live {
  /**
   * @param start what the first message says besides its type
   * @param on {state(name, detail), message(object), lost(seconds since the last break), closed(error | null)}
   *   states: connecting, live, held, reconnecting, finishing
   */
  constructor(start, on) {
    this.start = start;
    this.on = on;
    this.outbox = new Outbox(start.sample_rate);
    this.lastSeq = 0;
    this.lost_s = 0; // since the last break
    this.stopping = false;
    this.stopSent = false;
    this.held = false;
    this.over = false;
    this.open();
  }

  open() {
    this.say(this.session ? "reconnecting" : "connecting");
    this.ready = false;
    const url = address("v1/live").replace(/^http/, "ws");
    this.socket = new WebSocket(url);
    this.socket.binaryType = "arraybuffer";
    this.socket.addEventListener("open", () => this.greet());
    this.socket.addEventListener("message", ({ data }) => this.receive(JSON.parse(data)));
    this.socket.addEventListener("close", () => this.broken());
  }

  greet() {
    const key = currentKey();
    const first = this.session
      ? { type: "resume", session: this.session, after: this.lastSeq }
      : { type: "start", ...this.start };
    this.sendMessage(key ? { ...first, key } : first);
  }

  sendMessage(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  receive(message) {
    if (this.over) return;
    if (message.seq !== undefined) {
      if (message.seq <= this.lastSeq) return; // repeated after a break
      this.lastSeq = message.seq;
    }
    const handler = { started: this.started, pause: this.hold, continue: this.go, done: this.done, error: this.refused };
    (handler[message.type] ?? this.pass).call(this, message);
  }

  pass(message) {
    this.on.message(message);
  }

  started(message) {
    this.on.message(message);
    const gone = this.session ? this.outbox.rewind(Math.round(message.received_s * this.outbox.sampleRate)) : 0;
    if (gone > 0) this.on.lost(gone / this.outbox.sampleRate); // what was lost before it went is among it
    this.lost_s = 0;
    this.session = message.session;
    this.ready = true;
    this.held = false;
    this.stopSent = false;
    this.brokenSince = null;
    this.tries = 0;
    this.say(this.stopping ? "finishing" : "live");
    this.flush();
  }

  hold() {
    this.held = true;
    this.say("held");
  }

  go() {
    this.held = false;
    this.say(this.stopping ? "finishing" : "live");
    this.flush();
  }

  done(message) {
    this.on.message(message);
    this.end(null);
  }

  refused(message) {
    const gone = this.session && [404, 410].includes(message.status);
    this.end(gone ? new Error(GONE) : new Refused(message.status, message.message));
  }

  /** Sends samples (Int16Array) as soon as the service takes them. */
  send(samples) {
    const lost_s = this.outbox.push(samples);
    this.lost_s += lost_s;
    if (lost_s > 0) this.on.lost(this.lost_s);
    this.flush();
  }

  flush() {
    clearTimeout(this.later);
    while (this.ready && !this.held && this.socket.bufferedAmount < MOST_UNSENT_BYTES) {
      const samples = this.outbox.take();
      if (!samples) {
        if (this.stopping && !this.stopSent) {
          this.stopSent = true;
          this.sendMessage({ type: "stop" });
        }
        return;
      }
      this.socket.send(samples);
    }
    if (this.ready && !this.held) this.later = setTimeout(() => this.flush(), 50);
  }

  /** No more sound; what was sent is still translated. */
  stop() {
    if (this.stopping || this.over) return;
    this.stopping = true;
    if (this.ready && !this.held) this.say("finishing");
    this.flush();
  }

  /** Ends at once. */
  abandon() {
    this.end(null);
  }

  broken() {
    if (this.over) return;
    this.ready = false;
    if (!this.session) return this.end(new Error(UNREACHABLE));
    this.brokenSince ??= performance.now();
    if (performance.now() - this.brokenSince > GIVE_UP_S * 1000) {
      return this.end(new Error(TOO_LONG));
    }
    const wait_s = WAITS_S[Math.min(this.tries ?? 0, WAITS_S.length - 1)];
    this.tries = (this.tries ?? 0) + 1;
    this.say("reconnecting");
    setTimeout(() => this.over || this.open(), wait_s * 1000);
  }

  say(state) {
    if (!this.over) this.on.state(state);
  }

  end(error) {
    if (this.over) return;
    this.over = true;
    clearTimeout(this.later);
    this.socket.close(1000);
    this.on.closed(error);
  }
}
