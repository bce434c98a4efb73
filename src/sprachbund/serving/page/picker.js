// The choice of languages: a dialog with a search field and a box for each, for targets and for declared languages.

import { byId, element } from "./elements.js";
import { nameOf, ownName } from "./languages.js";

/**
 * Lets the user choose some of `tags`; resolves to the chosen ones.
 * @param refusal (tag) => why this one cannot be chosen, or ""
 */
export function pick({ title, hint, tags, chosen, refusal = () => "" }) {
  const dialog = byId("picker");
  byId("picker-title").textContent = title;
  byId("picker-hint").textContent = hint;
  const rows = [...tags].sort((a, b) => nameOf(a).localeCompare(nameOf(b))).map((tag) => row(tag, chosen, refusal(tag)));
  byId("picker-options").replaceChildren(...rows.map((each) => each.item));
  const search = byId("picker-search");
  search.value = "";
  search.hidden = tags.length <= 8;
  search.oninput = () => narrow(rows, search.value);
  search.onkeydown = (event) => event.key === "Enter" && takeFirst(event, rows);
  dialog.showModal();
  return new Promise((resolve) => {
    const finish = () => resolve(ordered(rows, chosen));
    dialog.addEventListener("close", finish, { once: true });
  });
}

function row(tag, chosen, reason) {
  const box = element("input", { type: "checkbox", value: tag, checked: chosen.includes(tag), disabled: Boolean(reason) });
  const own = ownName(tag);
  const label = element("label", {}, box, element("span", { textContent: nameOf(tag) }));
  if (own) label.append(element("span", { className: "quiet", lang: tag, dir: "auto", textContent: own }));
  label.append(element("code", { textContent: tag }));
  if (reason) label.append(element("em", { textContent: reason }));
  return { tag, box, item: element("li", {}, label), words: `${tag} ${nameOf(tag)} ${own}`.toLowerCase() };
}

function narrow(rows, typed) {
  const wanted = typed.trim().toLowerCase();
  for (const each of rows) each.item.hidden = !each.words.includes(wanted);
}

/** Enter in the search field takes the first language found instead of closing the dialog. */
function takeFirst(event, rows) {
  event.preventDefault();
  const first = rows.find((each) => !each.item.hidden && !each.box.disabled);
  if (first) first.box.checked = true;
}

/** Those chosen before keep their order; new ones follow. */
function ordered(rows, chosen) {
  const now = rows.filter((each) => each.box.checked).map((each) => each.tag);
  return [...chosen.filter((tag) => now.includes(tag)), ...now.filter((tag) => !chosen.includes(tag))];
}
