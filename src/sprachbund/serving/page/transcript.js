// What has been said so far: segments of every target, built from the service's events. Knows nothing of the page.

const UNDETERMINED = "und"; // what the service says of a language it does not know

export class Transcript {
  constructor() {
    this.name = "captions"; // of the recording; names the files
    this.unsaved = new Set(); // targets with text that was not downloaded
    this.segmentsBy = new Map(); // target to Map(key to segment)
    this.take = 0;
    this.offset_s = 0;
    this.end_s = 0;
  }

  /** A new session begins; its times count on from `offset_s`. */
  begin(offset_s = this.end_s) {
    this.take += 1;
    this.offset_s = offset_s;
  }

  /** Puts an event of kind "text" in its place and returns its segment. */
  apply(event) {
    const segment = this.segmentOf(event);
    segment.committed = (segment.committed + event.committed).trimStart();
    segment.tentative = event.final ? "" : event.tentative;
    if (event.source_language && event.source_language !== UNDETERMINED) segment.source_language = event.source_language;
    segment.start_s = Math.min(segment.start_s, event.start_s + this.offset_s);
    segment.end_s = Math.max(segment.end_s, event.end_s + this.offset_s);
    segment.dropped = event.dropped ?? null;
    segment.final = event.final;
    this.end_s = Math.max(this.end_s, segment.end_s);
    if (event.committed) this.unsaved.add(event.target);
    return segment;
  }

  segmentOf(event) {
    if (!this.segmentsBy.has(event.target)) this.segmentsBy.set(event.target, new Map());
    const segments = this.segmentsBy.get(event.target);
    const key = `${this.take}.${event.segment}`;
    if (!segments.has(key)) {
      segments.set(key, { key, target: event.target, source_language: "", committed: "", tentative: "",
        start_s: Infinity, end_s: 0, dropped: null, final: false });
    }
    return segments.get(key);
  }

  /** The session was cut off: tentative text will never be settled. Returns the segments that changed. */
  settle() {
    const open = this.all().filter((segment) => !segment.final);
    for (const segment of open) Object.assign(segment, { tentative: "", final: true });
    return open;
  }

  get targets() {
    return [...this.segmentsBy.keys()];
  }

  get empty() {
    return !this.all().some((segment) => segment.committed);
  }

  /** Segments of one target in the order of their time. */
  of(target) {
    return [...(this.segmentsBy.get(target)?.values() ?? [])].sort((a, b) => a.start_s - b.start_s || a.end_s - b.end_s);
  }

  all() {
    return this.targets.flatMap((target) => this.of(target));
  }

  /** Seconds of speech in each language heard, from the target that knows most of them. */
  heard() {
    const seconds = new Map();
    const target = this.targets[0];
    for (const segment of target ? this.of(target) : []) {
      const length_s = Math.max(0, segment.end_s - segment.start_s);
      if (segment.source_language) {
        seconds.set(segment.source_language, (seconds.get(segment.source_language) ?? 0) + length_s);
      }
    }
    return seconds;
  }
}
