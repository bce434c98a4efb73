// Shows the routes of the service by Swagger UI, whose files come from this service, too.

const dark = matchMedia("(prefers-color-scheme: dark)");
const home = new URL(".", document.baseURI);

/** The colours of the captions' page, in the way that Swagger UI knows. */
function colour() {
  const { classList, dataset } = document.documentElement;
  classList.toggle("dark-mode", dataset.theme === "dark" || (dataset.theme !== "light" && dark.matches));
}

async function get(path) {
  const answer = await fetch(new URL(path, home));
  if (!answer.ok) throw new Error(`The service answered ${answer.status}`);
  return answer.json();
}

/** The description of the routes, made ready to be tried. */
async function description() {
  const spec = await get("v1/openapi.json");
  spec.servers = [{ url: home.href.replace(/\/$/, "") }]; // a proxy may have put the service below a path
  const models = await get("v1/models").catch(() => ({ data: [] })); // they may need a key
  for (const operation of Object.values(spec.paths).flatMap(Object.values)) {
    fillIn(operation, models.data[0]?.id ?? "");
    showRefusalOnce(operation);
  }
  return spec;
}

/** Examples of the fields: Swagger UI would send the word "string" for each that has none. */
function fillIn(operation, model) {
  for (const [type, { schema }] of Object.entries(operation.requestBody?.content ?? {})) {
    if (type === "application/json") {
      schema.example = Object.fromEntries(schema.required.map((name) => [name, name === "model" ? model : ""]));
    } else for (const [name, field] of Object.entries(schema.properties)) {
      if (name === "model") field.example = model;
      else if (field.type === "array") field.example = [];
      else if (field.format !== "binary" && field.default == null) field.example = "";
    }
  }
  for (const parameter of operation.parameters ?? []) parameter.example = model;
}

/** All refusals have one form; it stands under 4XX. */
function showRefusalOnce(operation) {
  for (const [status, answer] of Object.entries(operation.responses)) {
    if (status !== "200" && status !== "4XX") delete answer.content;
  }
}

/** Fields that are left empty are not sent, unless "Send empty value" is ticked. */
function emptyFieldsStayHome({ React }) {
  const unticked = (Original) => (properties) => {
    const isIncludedOptions = { ...properties.isIncludedOptions, defaultValue: false };
    return React.createElement(Original, { ...properties, isIncludedOptions });
  };
  return { wrapComponents: { ParameterIncludeEmpty: unticked } };
}

async function show() {
  globalThis.SwaggerUIBundle({
    spec: await description(),
    dom_id: "#routes",
    plugins: [emptyFieldsStayHome],
    deepLinking: true,
    displayRequestDuration: true,
    persistAuthorization: false, // the key is kept until the page is closed, and stored nowhere
    tryItOutEnabled: true,
    validatorUrl: null,
  });
}

colour();
dark.addEventListener("change", colour);
show().catch((error) => {
  const advice = "Check that the service runs, then reload this page.";
  document.getElementById("routes").textContent = `${error.message}. ${advice}`;
});
