// The text on screen: one pane for each target. Settled text never moves because of tentative text: that stands
// behind it in the same paragraph, and the pane scrolls only when settled text grows.

import { clockText, element } from "./elements.js";
import { hueOf, nameOf, ownName } from "./languages.js";

const FORMATS = {
  srt: "Subtitles, .srt",
  vtt: "Subtitles for the web, .vtt",
  txt: "Plain text, .txt",
  json: "Everything, .json",
};

/** A button and the list it opens, which lies above everything and closes by itself. */
function downloadMenu(target, choose) {
  const button = element("button", { type: "button", className: "link", textContent: "Download",
    attributes: { "aria-label": `Download the text in ${nameOf(target)}` } });
  const list = element("ul", { popover: "auto" }, ...Object.entries(FORMATS).map(([format, text]) => {
    const item = element("button", { type: "button", textContent: text, dataset: { format } });
    item.addEventListener("click", () => {
      list.hidePopover();
      choose(format);
    });
    return element("li", {}, item);
  }));
  button.popoverTargetElement = list;
  list.addEventListener("toggle", () => placeBelow(list, button));
  return element("div", { className: "menu", hidden: true }, button, list);
}

function placeBelow(list, button) {
  const { right, bottom } = button.getBoundingClientRect();
  list.style.left = `${Math.max(8, right - list.offsetWidth)}px`;
  list.style.top = `${Math.max(8, Math.min(bottom, innerHeight - list.offsetHeight - 8))}px`;
}

class Pane {
  constructor(target, onDownload) {
    this.target = target;
    this.paragraphs = new Map();
    this.following = true;
    this.lastTop = 0;
    this.list = element("div", { className: "lines" });
    this.jump = element("button", { type: "button", className: "jump", hidden: true, textContent: "To the newest line" });
    this.scroller = element("div", { className: "scroller", tabIndex: 0,
      attributes: { role: "group", "aria-label": `Captions in ${nameOf(target)}` } }, this.list);
    this.root = element("section", { className: "pane", dataset: { target } },
      this.heading(onDownload), this.scroller, this.jump);
    this.jump.addEventListener("click", () => this.follow());
    new ResizeObserver(() => this.following && this.follow()).observe(this.scroller);
    this.scroller.addEventListener("scroll", () => this.noticeScroll(), { passive: true });
  }

  heading(onDownload) {
    const own = ownName(this.target);
    const title = element("h2", {}, nameOf(this.target));
    if (own) title.append(" ", element("span", { className: "quiet", lang: this.target, dir: "auto", textContent: own }));
    this.menu = downloadMenu(this.target, (format) => onDownload(this.target, format));
    return element("header", {}, title, this.menu);
  }

  show(segment, next) {
    const paragraph = this.paragraphs.get(segment.key) ?? this.add(segment, next);
    const grown = paragraph.committed.textContent !== segment.committed;
    if (grown) paragraph.committed.textContent = segment.committed;
    paragraph.tentative.textContent = segment.tentative;
    paragraph.dropped.textContent = segment.dropped ? `not shown: ${segment.dropped}` : "";
    this.mark(paragraph, segment);
    if (segment.committed) this.menu.hidden = false;
    if (grown) this.reveal(paragraph);
  }

  add(segment, next) {
    const language = { lang: this.target, dir: "auto" };
    const made = {
      tag: element("span", { className: "tag" }),
      time: element("time", {}),
      committed: element("span", { className: "committed" }),
      tentative: element("span", { className: "tentative", attributes: { "aria-hidden": "true" } }),
      dropped: element("span", { className: "dropped" }),
    };
    made.text = element("p", { className: "text", ...language }, made.committed, made.tentative);
    made.row = element("div", { className: "line" },
      element("div", { className: "gutter" }, made.tag, made.time), made.text, made.dropped);
    this.paragraphs.set(segment.key, made);
    this.list.insertBefore(made.row, this.paragraphs.get(next?.key)?.row ?? null);
    return made;
  }

  mark(paragraph, segment) {
    const heard = segment.source_language;
    paragraph.tag.textContent = heard;
    paragraph.tag.title = heard && `Heard: ${nameOf(heard)}`;
    if (heard) paragraph.row.dataset.hue = hueOf(heard);
    paragraph.time.textContent = clockText(segment.start_s);
    paragraph.row.hidden = !segment.committed && !segment.tentative && !segment.dropped;
  }

  /** Brings the end of the settled text to its place, with room below it for what is tentative. */
  reveal({ committed }) {
    if (!this.following) return;
    const wanted = this.wantedTop(committed);
    if (wanted > this.scroller.scrollTop) this.scroller.scrollTop = wanted;
  }

  wantedTop(committed) {
    const reserve = Number.parseFloat(getComputedStyle(this.list).paddingBottom);
    const ends = committed.getClientRects();
    const bottom = (ends[ends.length - 1] ?? committed.getBoundingClientRect()).bottom;
    const within = bottom - this.list.getBoundingClientRect().top;
    return Math.max(0, Math.ceil(within + reserve - this.scroller.clientHeight));
  }

  follow() {
    this.following = true;
    this.jump.hidden = true;
    const last = this.lastSettled();
    if (last) this.scroller.scrollTo({ top: this.wantedTop(last.committed), behavior: "instant" });
  }

  /** Who scrolls up is left in peace until they come back down; the page itself scrolls only downwards. */
  noticeScroll() {
    const { scrollTop } = this.scroller;
    const last = this.lastSettled();
    if (!last || scrollTop >= this.wantedTop(last.committed) - 40) this.following = true;
    else if (scrollTop < this.lastTop) this.following = false;
    this.lastTop = scrollTop;
    this.jump.hidden = this.following;
  }

  lastSettled() {
    return [...this.paragraphs.values()].findLast((paragraph) => paragraph.committed.textContent);
  }
}

export class Captions {
  constructor(root, onDownload) {
    this.root = root;
    this.onDownload = onDownload;
    this.panes = new Map();
  }

  /** Panes for the targets, in their order; those with text stay even when no longer chosen. */
  arrange(targets, transcript) {
    const wanted = [...new Set([...targets, ...transcript.targets])];
    for (const [target, pane] of this.panes) if (!wanted.includes(target)) this.remove(target, pane);
    for (const [index, target] of wanted.entries()) {
      if (!this.panes.has(target)) this.panes.set(target, new Pane(target, this.onDownload));
      const { root } = this.panes.get(target);
      const there = this.root.children[index] ?? null;
      if (there !== root) this.root.insertBefore(root, there);
    }
    this.root.dataset.count = wanted.length;
  }

  remove(target, pane) {
    pane.root.remove();
    this.panes.delete(target);
  }

  show(segment, transcript) {
    const pane = this.panes.get(segment.target);
    if (pane.paragraphs.has(segment.key)) return pane.show(segment);
    const ordered = transcript.of(segment.target);
    pane.show(segment, ordered[ordered.indexOf(segment) + 1]);
  }

  /** Brings every pane to its newest line, as after a change of size. */
  follow() {
    for (const pane of this.panes.values()) if (pane.following) pane.follow();
  }

  clear() {
    for (const [target, pane] of this.panes) this.remove(target, pane);
  }
}

/** Reads settled text to screen readers, a sentence's worth at a time. */
export class Announcer {
  constructor(region) {
    this.region = region;
    this.waiting = new Map();
    this.which = "first";
  }

  hear(event, targets) {
    const wanted = this.which === "all" || (this.which === "first" && event.target === targets[0]);
    if (!wanted) return;
    const text = (this.waiting.get(event.target) ?? "") + event.committed;
    const whole = event.final || text.length > 80 || /[.!?。\uff01\uff1f]$/u.test(text);
    this.waiting.set(event.target, whole ? "" : text);
    if (!whole || !text) return;
    this.region.append(element("p", { lang: event.target, dir: "auto", textContent: text.trim() }));
    while (this.region.children.length > 20) this.region.firstChild.remove();
  }

  clear() {
    this.region.replaceChildren();
    this.waiting.clear();
  }
}
