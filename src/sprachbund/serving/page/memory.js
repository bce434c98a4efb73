// What is remembered between visits: choices, never the key and never text.

export function recall(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(`choice:${name}`)) ?? fallback;
  } catch {
    return fallback;
  }
}

export function remember(name, value) {
  try {
    localStorage.setItem(`choice:${name}`, JSON.stringify(value));
  } catch {
    // a private window: the choice holds until the page is closed
  }
}
