// Files to download, made from the segments. Cues follow the rules of the commands (decoding/formats.py): two lines
// of 42 characters at most, a second on screen where there is room, never two at once. A test compares both.

import { belongsToNext } from "./phrases.js";

const MAX_LINE = 42;
const MAX_LINES = 2;
const MIN_CUE_S = 1;
const LEAST_CUE_S = 0.1;
const SENTENCE_END = /[.!?…。\uff01\uff1f]$/u;
const CLAUSE_END = /[,;:、\uff0c\uff1b\uff1a]$/u;

const length = (text) => [...text].length;
const wordsOf = (text) => text.split(/\s+/u).filter(Boolean);

/** Text of a download: "txt", "srt", "vtt" or "json". Only settled text is written. */
export function render(format, segments, about = {}) {
  if (format === "json") return json(segments, about);
  const kept = segments.filter((segment) => segment.committed);
  if (format === "txt") return kept.map((segment) => `${wordsOf(segment.committed).join(" ")}\n`).join("");
  const cues = spacedOut(kept.flatMap(cuesOf));
  return format === "vtt"
    ? `WEBVTT\n\n${cues.map((cue, i) => block(cue, i, ".", escapedVtt)).join("")}`
    : cues.map((cue, i) => block(cue, i, ",", escapedSrt)).join("");
}

function json(segments, about) {
  const rows = segments.map(({ start_s, end_s, source_language, target, committed, dropped }) => ({
    start_s: rounded(start_s), end_s: rounded(end_s), source_language, target_language: target,
    text: committed, dropped,
  }));
  return `${JSON.stringify({ ...about, segments: rows }, null, 2)}\n`;
}

const rounded = (second) => Math.round(second * 1000) / 1000;

function block(cue, index, point, escaped) {
  const times = `${clock(cue.start_s, point)} --> ${clock(cue.end_s, point)}`;
  return `${index + 1}\n${times}\n${cue.lines.map(escaped).join("\n")}\n\n`;
}

const escapedSrt = (line) => line.replace(/-{2,}>/g, "->"); // SubRip has no way to escape its arrow
const escapedVtt = (line) => line.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

/** Seconds as 01:02:03.004. */
export function clock(second, point) {
  const milliseconds = Math.round(second * 1000);
  const two = (number) => String(Math.floor(number)).padStart(2, "0");
  const parts = [milliseconds / 3_600_000, (milliseconds / 60_000) % 60, (milliseconds / 1000) % 60].map(two);
  return `${parts.join(":")}${point}${String(milliseconds % 1000).padStart(3, "0")}`;
}

/** A segment cut in cues inside its time, in proportion to characters. */
function cuesOf(segment) {
  const chunks = chunksOf(segment.committed, segment.target ?? "");
  const sizes = chunks.map((lines) => lines.reduce((sum, line) => sum + length(line), 0));
  const total = sizes.reduce((a, b) => a + b, 0);
  const length_s = Math.max(0, segment.end_s - segment.start_s);
  let done = 0;
  return chunks.map((lines, i) => {
    const start_s = segment.start_s + (length_s * done) / total;
    done += sizes[i];
    return { start_s, end_s: segment.start_s + (length_s * done) / total, lines };
  });
}

/** Short cues made longer where the next leaves room; none overlaps the next. */
function spacedOut(cues) {
  const spaced = cues.map((cue) => ({ ...cue }));
  spaced.forEach((cue, i) => {
    const next = spaced[i + 1];
    if (next) next.start_s = Math.max(next.start_s, cue.start_s + LEAST_CUE_S);
    cue.end_s = Math.min(Math.max(cue.end_s, cue.start_s + MIN_CUE_S), next?.start_s ?? Infinity);
  });
  return spaced;
}

/**
 * Lines of each cue; the end of a sentence closes a cue that is at least half full. A full cue ends behind a clause, or
 * else in front of the words that belong to the next one.
 */
function chunksOf(text, language) {
  const chunks = [];
  let current = [];
  for (const piece of wordsOf(text).flatMap(broken)) {
    if (current.length && wrapped([...current, piece]).length > MAX_LINES) {
      let cut = clauseEnd(current);
      if (cut === current.length) cut = phraseEnd(current, language);
      // Of words nearly as long as lines, what is left over may not fit with the next one.
      if (wrapped([...current.slice(cut), piece]).length > MAX_LINES) cut = current.length;
      chunks.push(current.slice(0, cut));
      current = current.slice(cut);
    }
    current.push(piece);
    if (SENTENCE_END.test(piece) && length(current.join(" ")) >= Math.floor((MAX_LINE * MAX_LINES) / 2)) {
      chunks.push(current);
      current = [];
    }
  }
  if (current.length) chunks.push(current);
  return chunks.map((words) => balanced(words, language));
}

/** Where to cut: after the last end of a clause in the second half, or behind all words. */
function clauseEnd(words) {
  for (let i = words.length - 1; i > Math.floor(words.length / 2); i--) {
    if (CLAUSE_END.test(words[i - 1]) || SENTENCE_END.test(words[i - 1])) return i;
  }
  return words.length;
}

/** Where neither the words before nor their first line end within a phrase, as long as half of them stay. */
function phraseEnd(words, language) {
  const within = (line) => belongsToNext(line.split(" ").at(-1), language);
  for (let i = words.length; i > Math.floor(words.length / 2); i--) {
    if (!balanced(words.slice(0, i), language).some(within)) return i;
  }
  return words.length;
}

/** A word longer than a line (a script without spaces) in pieces that fit. */
function broken(word) {
  const characters = [...word];
  const pieces = [];
  for (let i = 0; i < characters.length; i += MAX_LINE) pieces.push(characters.slice(i, i + MAX_LINE).join(""));
  return pieces;
}

function wrapped(words, width = MAX_LINE) {
  const lines = [""];
  for (const word of words) {
    const line = lines.at(-1);
    const longer = line ? `${line} ${word}` : word;
    if (!line || length(longer) <= width) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}

/** The words in one line, or in two as even as they get where the first ends with a phrase, if it can. */
function balanced(words, language) {
  const lines = wrapped(words);
  if (lines.length !== MAX_LINES) return lines;
  let best = null;
  for (let i = 1; i < words.length; i++) {
    const split = [words.slice(0, i).join(" "), words.slice(i).join(" ")];
    const lengths = split.map(length);
    if (Math.max(...lengths) > MAX_LINE) continue;
    const cost = (belongsToNext(words[i - 1], language) ? 1000 : 0) + Math.abs(lengths[0] - lengths[1]);
    if (best === null || cost < best.cost) best = { cost, split };
  }
  return best.split;
}
