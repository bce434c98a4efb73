// A recording from a file: uploaded once per target, its segments shown as they are finished.

import { address, headers, refusal } from "./api.js";

const MOST_RETRIES = 20;

/** The events of a stream of server-sent events, fed as the text grows. */
export class Events {
  constructor(onEvent) {
    this.onEvent = onEvent;
    this.read = 0;
  }

  /** `text` is all that has come so far. */
  feed(text) {
    for (;;) {
      const match = /\r?\n\r?\n/.exec(text.slice(this.read));
      if (!match) return;
      this.block(text.slice(this.read, this.read + match.index));
      this.read += match.index + match[0].length;
    }
  }

  block(block) {
    const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
    if (data.length && data[0] !== "[DONE]") this.onEvent(JSON.parse(data.join("\n")));
  }
}

export class FileRun {
  /**
   * @param file what was chosen
   * @param fields of the form besides file and target, as pairs: model, language, ...
   * @param on {text(event), progress(part sent 0..1, seconds done, seconds in all | null), wait(seconds),
   *   warning(sentence)}
   */
  constructor(file, targets, fields, on) {
    this.file = file;
    this.targets = targets;
    this.fields = fields;
    this.on = on;
    this.requests = new Set();
    this.stopped = false;
    this.sent = new Map();
    this.done_s = new Map();
    this.duration_s = null;
  }

  /** Resolves when every target is done; rejects with the first refusal. */
  async run() {
    try {
      await Promise.all(this.targets.map((target) => this.translate(target)));
    } catch (error) {
      this.abandon();
      throw error;
    }
  }

  abandon() {
    this.stopped = true;
    for (const request of this.requests) request.abort();
  }

  async translate(target) {
    for (let tries = 0; !this.stopped; tries++) {
      try {
        return await this.attempt(target);
      } catch (error) {
        if (this.stopped) return;
        if (error.status !== 429 || tries === MOST_RETRIES) throw error;
        const wait_s = error.retryAfterS ?? 2;
        this.on.wait(wait_s);
        await new Promise((resolve) => setTimeout(resolve, wait_s * 1000));
      }
    }
  }

  attempt(target) {
    const request = new XMLHttpRequest(); // fetch does not report how much of an upload is through
    const segments = new Segments(target, this);
    const events = new Events((event) => segments.take(event));
    this.requests.add(request);
    return new Promise((resolve, reject) => {
      request.upload.onprogress = ({ loaded, total }) => this.uploaded(target, loaded / total);
      request.onprogress = () => request.status === 200 && guarded(reject, () => events.feed(request.responseText));
      request.onload = () => guarded(reject, () => {
        if (request.status !== 200) throw refusal(request.status, request.responseText, request.getResponseHeader("Retry-After"));
        events.feed(`${request.responseText}\n\n`);
        segments.finish();
        resolve();
      });
      request.onabort = () => (this.stopped ? resolve() : reject(new Error("The upload was stopped")));
      request.onerror = () => reject(new Error("The connection broke while the file was worked on. Try again"));
      request.onloadend = () => this.requests.delete(request);
      request.open("POST", address("v1/audio/translations"));
      for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
      request.send(this.form(target));
    });
  }

  form(target) {
    const form = new FormData();
    const wanted = [["target_language", target], ["response_format", "verbose_json"], ["stream", "true"]];
    for (const [name, value] of [...this.fields, ...wanted]) form.append(name, value);
    form.append("file", this.file, this.file.name);
    return form;
  }

  uploaded(target, part) {
    this.sent.set(target, part);
    this.notify();
  }

  reached(target, second, duration_s) {
    this.duration_s = duration_s ?? this.duration_s;
    this.done_s.set(target, Math.max(second, this.done_s.get(target) ?? 0));
    this.notify();
  }

  notify() {
    const least = (map) => Math.min(...this.targets.map((target) => map.get(target) ?? 0));
    this.on.progress(least(this.sent), least(this.done_s), this.duration_s);
  }
}

function guarded(reject, work) {
  try {
    work();
  } catch (error) {
    reject(error);
  }
}

/** The events of one request as texts of the live kind. */
class Segments {
  constructor(target, run) {
    this.target = target;
    this.run = run;
    this.ended = false;
  }

  take(event) {
    if (event.error) throw refusal(event.error.status ?? 500, JSON.stringify(event));
    if (event.type === "transcript.text.segment") this.show(event);
    if (event.type === "transcript.text.done") {
      this.ended = true;
      for (const warning of event.warnings ?? []) this.run.on.warning(warning);
      this.run.reached(this.target, event.duration, event.duration);
    }
  }

  show({ id, start, end, text, source_language, dropped, duration }) {
    this.run.on.text({
      type: "text", target: this.target, segment: Number(id), committed: text, tentative: "", retracted: 0,
      start_s: start, end_s: end, source_language, audio_s: end, final: true, dropped,
    });
    this.run.reached(this.target, end, duration);
  }

  finish() {
    if (!this.ended) throw new Error("The answer broke off before its end. The text so far is kept; try again");
  }
}
