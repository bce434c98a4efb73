// Ways to use the page besides its buttons: keys, dropping a file; the screen; and how it looks.

import { byId } from "./elements.js";
import { recall, remember } from "./memory.js";
import { message } from "./view.js";

// Keys

const FIELDS = "input:not([type=checkbox]), select, textarea";
const PRESSED_BY_SPACE = "button, summary, a[href], input[type=checkbox]";

export function bindKeys({ toggle, pause, stop }) {
  byId("shortcuts").checked = recall("shortcuts", true);
  byId("shortcuts").addEventListener("change", ({ target }) => remember("shortcuts", target.checked));
  const actions = { " ": toggle, p: pause, f: toggleStage, Escape: () => (onStage() ? toggleStage() : stop()) };
  document.addEventListener("keydown", (event) => {
    const elsewhere = event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey || event.repeat;
    if (elsewhere || document.querySelector("dialog[open], :popover-open") || !byId("shortcuts").checked) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const taken = key === " " ? `${FIELDS}, ${PRESSED_BY_SPACE}` : FIELDS;
    if (!actions[key] || (key !== "Escape" && event.target.closest?.(taken))) return;
    event.preventDefault();
    actions[key]();
  });
}

// Screen

let lock = null;
let awake = false;

/** Keeps the screen on while captions come, where the browser can; the lock goes when the page is out of sight. */
export async function keepAwake(on) {
  awake = on;
  try {
    if (!on) await lock?.release();
    else if (!lock || lock.released) lock = await navigator.wakeLock?.request("screen");
  } catch {
    // on a nearly empty battery, say; the captions come all the same
  }
}

document.addEventListener("visibilitychange", () => awake && !document.hidden && keepAwake(true));

// Files

export function bindDrop(work, busy) {
  const chooser = byId("file");
  byId("choose").addEventListener("click", () => chooser.click());
  chooser.addEventListener("change", () => {
    const [file] = chooser.files;
    chooser.value = "";
    if (file) work(file);
  });
  let depth = 0;
  const show = (now) => { byId("drop").hidden = !now; };
  addEventListener("dragenter", (event) => { depth += 1; show(hasFile(event)); });
  addEventListener("dragleave", () => { depth = Math.max(0, depth - 1); if (!depth) show(false); });
  addEventListener("dragover", (event) => hasFile(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    depth = 0;
    show(false);
    dropped([...event.dataTransfer.files], work, busy);
  });
}

const hasFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

function dropped(files, work, busy) {
  if (busy()) return message("Something is still running. Stop it first, then drop the file again.");
  if (files.length > 1) return message(`${files.length} files were dropped. This page takes one at a time.`);
  if (files[0]) work(files[0]);
}

// Look

/** `resized()` is called when the captions change their size. */
export function bindLook(resized) {
  bindTheme();
  byId("stage").addEventListener("click", toggleStage);
  document.addEventListener("fullscreenchange", () => document.fullscreenElement || setStage(false));
  const size = byId("size");
  size.value = recall("size", 1);
  const resize = () => document.documentElement.style.setProperty("--scale", size.value);
  size.addEventListener("input", () => { resize(); remember("size", size.valueAsNumber); resized(); });
  resize();
  const open = () => byId("settings").showModal();
  byId("open-settings").addEventListener("click", open);
}

function bindTheme() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme === "auto" ? system.matches : root.dataset.theme === "dark");
  const show = () => byId("theme").setAttribute("aria-pressed", String(isDark()));
  byId("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("theme", root.dataset.theme);
    } catch {
      // a private window: holds until the page is closed
    }
    show();
  });
  system.addEventListener("change", show);
  show();
}

const onStage = () => document.documentElement.classList.contains("on-stage");

function setStage(on) {
  document.documentElement.classList.toggle("on-stage", on);
  byId("stage").setAttribute("aria-pressed", String(on));
}

/** Captions only, on the whole screen where the browser allows it. */
function toggleStage() {
  const on = !onStage();
  setStage(on);
  if (on) document.documentElement.requestFullscreen?.().catch(() => {});
  else if (document.fullscreenElement) document.exitFullscreen();
}
