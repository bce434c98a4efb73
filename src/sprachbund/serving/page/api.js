// Requests to the service that served this page, and to nobody else.

let key = null; // in memory only

export class Refused extends Error {
  constructor(status, message, retryAfterS = null) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

export function address(path) {
  return new URL(path, document.baseURI).href;
}

export function headers() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

export function currentKey() {
  return key;
}

const ADVICE = {
  408: "The connection is too slow or broke off. Try again.",
  413: "The file is too big. Choose a shorter recording, or cut it in parts.",
  429: "Many people use it just now. Wait a moment and try again.",
  502: "The service behind it does not run. Tell whoever runs it.",
  503: "It is starting, stopping or full. Try again in a moment.",
};

/** What happened, as a sentence; the service's own words say what to do. */
export function explain(error) {
  const message = error?.message || String(error);
  return /[.!?]$/.test(message) ? message : `${message}.`;
}

/** The error of an HTTP answer, whose body may be the service's or that of a proxy before it. */
export function refusal(status, body, retryAfter = null) {
  const seconds = Number.parseFloat(retryAfter);
  const advice = ADVICE[status] ?? "Try again; if it stays, tell whoever runs it.";
  const message = messageIn(body) || `The service answered ${status}. ${advice}`;
  return new Refused(status, message, Number.isFinite(seconds) ? seconds : null);
}

function messageIn(body) {
  try {
    return JSON.parse(body).error?.message ?? "";
  } catch {
    return "";
  }
}

async function get(path) {
  let answer;
  try {
    answer = await fetch(address(path), { headers: headers() });
  } catch {
    throw new Error("The service cannot be reached. Check that it runs, then reload this page");
  }
  if (!answer.ok) throw refusal(answer.status, await answer.text(), answer.headers.get("Retry-After"));
  return answer.json();
}

/** JSON at `path`; asks for the key as often as it is refused. */
export async function getJson(path) {
  for (;;) {
    try {
      return await get(path);
    } catch (error) {
      if (error.status !== 401) throw error;
      await askKey(error);
    }
  }
}

/** Opens the dialog for the key. Throws the refusal again when the user would rather not. */
export function askKey(error) {
  const dialog = document.getElementById("key-dialog");
  const field = document.getElementById("key");
  const hint = document.getElementById("key-hint");
  if (key) hint.textContent = "That key was not accepted. Check it, or ask whoever runs this service.";
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  field.focus();
  return new Promise((resolve, reject) => {
    dialog.addEventListener("close", () => {
      const entered = field.value.trim();
      field.value = "";
      if (dialog.returnValue !== "ok" || !entered) return reject(error);
      key = entered;
      resolve();
    }, { once: true });
  });
}
