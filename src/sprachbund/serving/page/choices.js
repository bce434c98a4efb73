// What the user has chosen: model, languages, settings; and the controls that show it.

import { getJson } from "./api.js";
import { byId, element } from "./elements.js";
import { learn, nameOf } from "./languages.js";
import { recall, remember } from "./memory.js";
import { microphones } from "./microphone.js";
import { pick } from "./picker.js";

const POLICIES = {
  auto: ["What suits the model", "Local agreement; models that write as they hear need nothing else. A good start."],
  "local-agreement": ["Local agreement", "Text settles when two attempts in a row agree."],
  alignatt: ["Attention", "Text settles unless it looks at the very end of the sound. Often the quickest."],
  "wait-k": ["Wait-k", "Starts a fixed number of steps behind the speaker and keeps the distance."],
  retranslation: ["Re-translation", "Shows everything at once and corrects it; text settles at the end of a stretch of speech."],
  span: ["After each pause", "Waits for the end of each stretch of speech: the slowest and the best text."],
};

export class Choices {
  /** `changed()` is called after every choice. */
  constructor(changed) {
    this.changed = changed;
    this.targets = recall("targets", []);
    this.declared = [];
    this.source = "";
    this.pairs = [];
    this.policies = [];
    this.bind();
  }

  bind() {
    fillSelect(byId("policy"), Object.entries(POLICIES).map(([name, [title]]) => [name, title]));
    byId("policy").value = recall("policy", "auto");
    byId("source").addEventListener("change", () => this.setSource(byId("source").value));
    byId("declare").addEventListener("click", () => this.pickDeclared());
    byId("add-target").addEventListener("click", () => this.pickTargets());
    byId("policy").addEventListener("change", () => this.update());
    byId("model").addEventListener("change", () => this.loadLanguages().catch(this.failed));
    byId("setup").addEventListener("submit", (event) => event.preventDefault());
  }

  /** Reads models and languages from the service. */
  async load(failed) {
    this.failed = failed;
    const data = (await getJson("v1/models")).data.filter((model) => !model.alias_of);
    if (!data.length) throw new Error("The service has no model. Whoever runs it has to name one");
    fillSelect(byId("model"), data.map(({ id }) => [id, id]));
    const before = recall("model", null);
    if (data.some(({ id }) => id === before)) byId("model").value = before;
    await this.loadLanguages();
  }

  async loadLanguages() {
    const known = await getJson(`v1/languages?model=${encodeURIComponent(this.model)}`);
    learn([...known.sources, ...known.targets]);
    this.pairs = known.pairs;
    this.policies = known.policies;
    this.offerPolicies();
    this.sources = known.sources.map(({ tag }) => tag);
    this.known = known.targets.map(({ tag }) => tag);
    fillSelect(byId("source"), [["", "Find out"], ...this.sources.map((tag) => [tag, nameOf(tag)])]);
    this.declared = this.declared.filter((tag) => this.sources.includes(tag));
    this.targets = this.targets.filter((tag) => this.known.includes(tag));
    if (!this.targets.length) this.targets = [this.firstTarget()];
    this.setSource(this.sources.includes(this.source) ? this.source : "");
  }

  /** Those that the model can work by; "auto" always. */
  offerPolicies() {
    const policy = byId("policy");
    for (const option of policy.options) option.disabled = option.value !== "auto" && !this.policies.includes(option.value);
    if (policy.selectedOptions[0]?.disabled) policy.value = "auto";
  }

  /** The user's own language, where the model writes it. */
  firstTarget() {
    const own = navigator.languages.map((tag) => tag.split("-")[0]);
    return own.find((tag) => this.known.includes(tag)) ?? this.known[0];
  }

  get model() {
    return byId("model").value;
  }

  setSource(tag) {
    this.source = tag;
    byId("source").value = tag;
    this.update();
  }

  async pickTargets() {
    const chosen = await pick({
      title: "Text in", hint: "Every language gets captions of its own.", tags: this.known, chosen: this.targets,
      refusal: (tag) => (this.possible(tag) ? "" : `not from ${nameOf(this.source)}`),
    });
    this.targets = chosen.length ? chosen : this.targets;
    this.update();
  }

  async pickDeclared() {
    this.declared = await pick({
      title: "May be spoken", tags: this.sources, chosen: this.declared,
      hint: "What is heard is taken for one of these. None chosen: any language the model knows.",
    });
    this.update();
  }

  possible(target) {
    return !this.source || this.pairs.some(([from, to]) => from === this.source && to === target);
  }

  /** Why nothing can be started like this; empty when it can. */
  get trouble() {
    const impossible = this.targets.filter((tag) => !this.possible(tag));
    if (!impossible.length) return "";
    const what = `This model does not turn ${nameOf(this.source)} into ${impossible.map(nameOf).join(" or ")}`;
    return `${what}. Take it away or choose another language to translate from.`;
  }

  update() {
    byId("policy-hint").textContent = POLICIES[byId("policy").value][1];
    byId("declare").hidden = Boolean(this.source);
    byId("declare").textContent = this.declared.length ? `among ${this.declared.map(nameOf).join(", ")}` : "any language";
    byId("targets").replaceChildren(...this.targets.map((tag) => this.chip(tag)));
    remember("targets", this.targets);
    remember("model", this.model);
    remember("policy", byId("policy").value);
    this.changed();
  }

  chip(tag) {
    const only = this.targets.length === 1;
    const button = element("button", { type: "button", textContent: "×",
      attributes: { "aria-label": `Remove ${nameOf(tag)}` } });
    button.addEventListener("click", () => {
      this.targets = this.targets.filter((each) => each !== tag);
      this.update();
      byId("add-target").focus();
    });
    const name = element("span", { textContent: nameOf(tag) });
    return element("li", { className: "chip", dataset: { tag } }, name, ...(only ? [] : [button]));
  }

  /** The first message of a live session. */
  start(sample_rate) {
    const policy = byId("policy").value, step_s = byId("step").valueAsNumber;
    // After each pause there is one look alone, and a model that writes by frames is never asked again.
    const looks = !["span", "frames"].includes(policy === "auto" ? this.policies[0] : policy) && Number.isFinite(step_s);
    return {
      model: this.model, targets: this.targets, source: this.source || null,
      languages: this.source || !this.declared.length ? null : this.declared,
      policy, settings: looks ? { step_s } : {},
      encoding: "pcm_s16le", sample_rate,
    };
  }

  /** Fields of the form that goes with a file, as pairs since some come several times. */
  fields() {
    const declared = this.source ? [] : this.declared.map((tag) => ["languages[]", tag]);
    return [["model", this.model], ...(this.source ? [["language", this.source]] : []), ...declared];
  }

  freeze(running) {
    for (const id of ["model", "policy", "step", "device", "clear"]) byId(id).disabled = running;
    byId("frozen").hidden = !running;
    if (!running) this.update();
  }

  async listMicrophones() {
    const before = byId("device").value;
    const devices = (await microphones()).map(({ deviceId, label }) => [deviceId, label]);
    fillSelect(byId("device"), [["", "As the system has it"], ...devices]);
    if (devices.some(([id]) => id === before)) byId("device").value = before;
  }
}

function fillSelect(select, options) {
  select.replaceChildren(...options.map(([value, textContent]) => element("option", { value, textContent })));
}
