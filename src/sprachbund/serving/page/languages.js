// Names of languages, and their colours.

const names = new Map();

/** Learns the names that the service gives. */
export function learn(languages) {
  for (const { tag, name } of languages) names.set(tag, name);
}

/** A language's name in English. */
export function nameOf(tag) {
  return names.get(tag) ?? displayName("en", tag);
}

/** A language's name in itself; empty when that is the English one or unknown. */
export function ownName(tag) {
  const own = displayName(tag, tag);
  const name = own.charAt(0).toLocaleUpperCase(tag) + own.slice(1);
  return own === tag || name.toLowerCase() === nameOf(tag).toLowerCase() ? "" : name;
}

function displayName(locale, tag) {
  try {
    return new Intl.DisplayNames([locale], { type: "language" }).of(tag) ?? tag;
  } catch {
    return tag;
  }
}

const hues = new Map();

/** Number of the colour a heard language has on this page, in order of appearance. */
export function hueOf(tag) {
  if (!hues.has(tag)) hues.set(tag, hues.size % 8);
  return hues.get(tag);
}
