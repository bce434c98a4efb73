// What the page says besides the captions: state, delay, clock, messages, legend.

import { byId, clockText, element } from "./elements.js";
import { hueOf, nameOf } from "./languages.js";

const STATES = {
  loading: "Getting ready",
  idle: "Ready",
  asking: "Waiting for the microphone",
  connecting: "Connecting",
  live: "Listening",
  paused: "Paused",
  held: "Catching up",
  reconnecting: "Connection lost, coming back",
  finishing: "Finishing",
  file: "Working on the file",
  waiting: "Waiting in the queue",
  unusable: "Not connected",
};

const RUNNING = new Set(["asking", "connecting", "live", "paused", "held", "reconnecting", "finishing", "file", "waiting"]);
const SLOW_S = 5;

export const isRunning = (state) => RUNNING.has(state);

/** Shows a state and the controls that make sense in it. */
export function showState(state, isFile) {
  document.documentElement.dataset.state = state;
  byId("state-text").textContent = STATES[state];
  const running = isRunning(state);
  byId("start").disabled = state === "loading" || state === "unusable";
  byId("start").classList.toggle("stop", running);
  byId("start-text").textContent = state === "finishing" ? "End now" : running ? "Stop" : "Listen";
  byId("setup").hidden = running;
  byId("choose").hidden = running;
  byId("choose").disabled = state === "loading" || state === "unusable";
  byId("pause").hidden = !running || isFile || state === "finishing" || state === "asking";
  byId("pause").setAttribute("aria-pressed", String(state === "paused"));
  byId("pause").textContent = state === "paused" ? "Go on" : "Pause";
}

export function showDelay(delay_s) {
  byId("delay").hidden = delay_s === null;
  if (delay_s === null) return;
  byId("delay-value").textContent = `${delay_s.toFixed(1)} s`;
  byId("delay").classList.toggle("slow", delay_s > SLOW_S);
}

export function showClock(second, total_s = null) {
  byId("clock").textContent = total_s ? `${clockText(second)} of ${clockText(total_s)}` : clockText(second);
}

/** A part between 0 and 1; null where it is not known; undefined hides the bar. */
export function showProgress(part) {
  const bar = byId("progress");
  bar.hidden = part === undefined;
  byId("wave").hidden = part !== undefined;
  if (part === null) bar.removeAttribute("value");
  else if (part !== undefined) bar.value = part;
}

/** A message that stays until it is put away; the same one is not shown twice. */
/** Says something; what was said of the same before goes. */
export function message(text, kind = "error", about = text) {
  const box = byId("messages");
  [...box.children].find((each) => each.dataset.about === about)?.remove();
  const away = element("button", { type: "button", className: "icon", textContent: "×",
    attributes: { "aria-label": "Put this message away" } });
  const row = element("div", { className: `message ${kind}`, dataset: { about } }, element("p", { textContent: text }), away);
  away.addEventListener("click", () => row.remove());
  box.append(row);
  while (box.children.length > 3) box.firstChild.remove();
}

export function clearMessages() {
  byId("messages").replaceChildren();
}

/** Languages heard, each with its colour, tag, name and seconds. */
export function showLegend(heard) {
  const legend = byId("legend");
  legend.hidden = heard.size === 0;
  legend.replaceChildren(...[...heard].map(([tag, seconds]) => element("li", { dataset: { hue: hueOf(tag) } },
    element("span", { className: "tag", textContent: tag }), element("span", { textContent: nameOf(tag) }),
    element("span", { className: "quiet", textContent: clockText(Math.round(seconds)) }))));
}

let answered = Promise.resolve();

/** Asks before text is lost. A question waits for the one before: its closing event comes after its click. */
export function confirmed(title, text, action) {
  answered = answered.then(() => ask(title, text, action));
  return answered;
}

function ask(title, text, action) {
  const dialog = byId("confirm");
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-ok").textContent = action;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok"), { once: true });
  });
}
