// Brings the parts of the page together.

import { askKey, explain } from "./api.js";
import { Announcer, Captions } from "./captions.js";
import { Choices } from "./choices.js";
import { byId, save } from "./elements.js";
import { FileRun } from "./files.js";
import { hueOf } from "./languages.js";
import { bindKeys, bindDrop, bindLook, keepAwake } from "./controls.js";
import { Listening } from "./session.js";
import { render } from "./subtitles.js";
import { Transcript } from "./transcript.js";
import {
  clearMessages, confirmed, isRunning, message, showClock, showDelay, showLegend, showProgress, showState,
} from "./view.js";
import { Wave } from "./wave.js";

const MEDIA_TYPES = { srt: "application/x-subrip", vtt: "text/vtt", txt: "text/plain", json: "application/json" };
const wave = new Wave(byId("wave"));
const captions = new Captions(byId("panes"), download);
const announcer = new Announcer(byId("announcer"));
const choices = new Choices(arrange);

let transcript = new Transcript();
let run = null; // Listening or FileRun
let state = "loading";
let frames = 0; // of 100 ms, in this session
let delays = []; // of the last settled texts, in seconds

function enter(next) {
  state = next;
  showState(state, run instanceof FileRun);
  keepAwake(isRunning(next));
  if (isRunning(next)) arrange();
  else choices.freeze(false);
}

function arrange() {
  captions.arrange(choices.targets, transcript);
  byId("panes").hidden = transcript.all().length === 0 && !isRunning(state);
  byId("empty").hidden = !byId("panes").hidden;
}

/** A new transcript, after asking when the one on screen was not saved. */
async function fresh(name) {
  if (transcript.unsaved.size > 0) {
    const sure = await confirmed("Replace the captions?", "Some were not downloaded and would be gone.", "Replace");
    if (!sure) return false;
  }
  wipe();
  transcript.name = name;
  return true;
}

function wipe() {
  transcript = new Transcript();
  captions.clear();
  announcer.clear();
  wave.clear();
  showLegend(transcript.heard());
  showDelay(null);
  showClock(0);
  arrange();
}

function take(event) {
  const segment = transcript.apply(event);
  if (!captions.panes.has(event.target)) captions.arrange(choices.targets, transcript);
  captions.show(segment, transcript);
  announcer.hear(event, choices.targets);
  if (segment.source_language) {
    const spans = event.spans?.length ? event.spans : [{ ...event, language: segment.source_language }];
    for (const { start_s, end_s, language } of spans) wave.colour(start_s, end_s, hueOf(language));
    showLegend(transcript.heard());
  }
}

function begin() {
  clearMessages();
  if (choices.trouble) message(choices.trouble);
  return !choices.trouble;
}

// Listening

async function listen() {
  if (!begin()) return;
  const continued = transcript.name === "captions" && !transcript.empty;
  if (!continued && !(await fresh("captions"))) return;
  transcript.begin();
  wave.clear();
  frames = 0;
  delays = [];
  run = new Listening((rate) => choices.start(rate), {
    state: enter, message: hear, level, lost: lostSound, closed: ended,
  });
  choices.freeze(true);
  try {
    await run.open(byId("device").value);
    await choices.listMicrophones();
  } catch (error) {
    ended(error);
  }
}

function level(value) {
  wave.push(value);
  frames += 1;
  showClock(transcript.offset_s + frames / 10);
}

function lostSound(seconds) {
  message(`${seconds.toFixed(1)} seconds of sound could not be kept while the connection was gone and are missing.`,
    "notice", "lost sound");
}

function hear(event) {
  if (event.type === "text") {
    take(event);
    if (event.committed) settled(event);
  } else if (event.type === "notice") {
    const lost = event.lost_s > 0 ? ` ${event.lost_s.toFixed(1)} seconds of sound were left out.` : "";
    message(`${event.message.replace(/[.]?$/, ".")}${lost}`, event.kind === "error" ? "error" : "notice");
  } else if (event.type === "done") {
    transcript.end_s = Math.max(transcript.end_s, transcript.offset_s + event.audio_s);
  }
}

/** The longest of the last delays, from the end of the speech to its settled text: steadier than each of them. */
function settled(event) {
  delays = [...delays, event.delay_s + Math.max(0, event.audio_s - event.end_s)].slice(-5);
  showDelay(Math.max(...delays));
}

// Files

async function work(file) {
  if (isRunning(state) || !begin()) return;
  if (file.size === 0) return message(`${file.name} is empty. Choose another file.`);
  if (!(await fresh(file.name.replace(/\.[^.]*$/, "")))) return;
  transcript.begin(0);
  run = new FileRun(file, choices.targets, choices.fields(), {
    text: (event) => { take(event); if (state === "waiting") enter("file"); },
    progress: fileProgress, wait: () => enter("waiting"),
    warning: (sentence) => message(`${sentence[0].toUpperCase()}${sentence.slice(1)}.`, "notice"),
  });
  choices.freeze(true);
  enter("file");
  showProgress(0);
  await finishFile(run);
}

async function finishFile(current) {
  try {
    await current.run();
    ended(null);
  } catch (error) {
    if (error.status !== 401) return ended(error);
    ended(null);
    askKey(error).then(() => work(current.file), () => message(explain(error)));
  }
}

/** Sending is the first tenth of the bar; the rest is what the service has worked on, where its length is known. */
function fileProgress(sent, done_s, duration_s) {
  if (sent < 1) showProgress(sent / 10);
  else showProgress(duration_s ? 0.1 + (0.9 * done_s) / duration_s : null);
  showClock(done_s, duration_s);
}

// Ends

function ended(error) {
  run = null;
  for (const segment of transcript.settle()) if (captions.panes.has(segment.target)) captions.show(segment, transcript);
  showProgress(undefined);
  showDelay(null);
  enter("idle");
  if (error) message(explain(error));
}

function stop() {
  if (run instanceof FileRun) run.abandon();
  else run?.stop();
}

function pause() {
  if (run instanceof Listening && run.live && !run.stopping) run.pause(!run.paused);
}

function toggle() {
  if (isRunning(state)) stop();
  else if (state === "idle") listen();
}

function download(target, format) {
  const about = { recording: transcript.name, duration_s: Math.round(transcript.end_s * 1000) / 1000, target_language: target };
  save(`${transcript.name}.${target}.${format}`, render(format, transcript.of(target), about), MEDIA_TYPES[format]);
  transcript.unsaved.delete(target);
}

async function clear() {
  byId("settings").close();
  if (!isRunning(state)) await fresh("captions");
}

byId("start").addEventListener("click", toggle);
byId("pause").addEventListener("click", pause);
byId("clear").addEventListener("click", clear);
byId("read-out").addEventListener("change", ({ target }) => { announcer.which = target.value; });
bindLook(() => captions.follow());
bindDrop((file) => work(file), () => isRunning(state) || state === "unusable");
bindKeys({ toggle, pause, stop: () => isRunning(state) && stop() });
addEventListener("beforeunload", (event) => {
  if (isRunning(state) || transcript.unsaved.size > 0) event.preventDefault();
});

showState("loading", false);
try {
  await choices.load((error) => message(explain(error)));
  enter("idle");
} catch (error) {
  enter("unusable");
  message(explain(error));
}
