// A form made from a JSON Schema; what no field shows well is edited as JSON.
import { html, useEffect, useState } from "/static/vendor/htm-preact.js";

function resolved(schema, root) {
  let at = schema ?? {};
  for (let i = 0; at.$ref && i < 20; i++) {
    const found = at.$ref.replace(/^#\/?/, "").split("/").reduce((into, part) => into?.[part.replaceAll("~1", "/").replaceAll("~0", "~")], root);
    at = { ...found, ...Object.fromEntries(Object.entries(at).filter(([name]) => name !== "$ref")) };
  }
  const options = (at.anyOf ?? at.oneOf ?? []).map((each) => resolved(each, root));
  const real = options.filter((each) => each.type !== "null");
  if (options.length && real.length === 1) return { ...real[0], ...at, anyOf: undefined, oneOf: undefined, nullable: real.length < options.length };
  return at;
}

const kindOf = (schema) => {
  if (schema.enum || schema.const !== undefined) return "choice";
  const type = Array.isArray(schema.type) ? schema.type.find((each) => each !== "null") : schema.type;
  return ["string", "integer", "number", "boolean"].includes(type) ? type : "json";
};

export function initial(schema) {
  const root = schema ?? {};
  const found = {};
  for (const [name, raw] of Object.entries(root.properties ?? {})) {
    const field = resolved(raw, root);
    const given = field.default ?? field.examples?.[0];
    if (given !== undefined && given !== null) found[name] = kindOf(field) === "json" ? JSON.stringify(given, null, 2) : given;
    else if (kindOf(field) === "boolean" && (root.required ?? []).includes(name)) found[name] = false;
  }
  return found;
}

// The content that the fields' texts come to; throws with the field's name.
export function content(schema, values) {
  const root = schema ?? {};
  const made = {};
  for (const [name, raw] of Object.entries(root.properties ?? {})) {
    const value = values[name];
    if (value === undefined || value === "") continue;
    const field = resolved(raw, root);
    const kind = kindOf(field);
    try {
      if (kind === "json") made[name] = JSON.parse(value);
      else if (kind === "integer" || kind === "number") {
        made[name] = Number(value);
        if (Number.isNaN(made[name])) throw new Error("not a number");
      } else if (kind === "choice") made[name] = (field.enum ?? [field.const]).find((each) => String(each) === String(value)) ?? value;
      else made[name] = value;
    } catch {
      throw Object.assign(new Error(`${name} is no ${kind === "json" ? "JSON" : "number"}`), { field: name });
    }
  }
  return made;
}

function Field({ id, name, schema, required, value, set, bad }) {
  const kind = kindOf(schema);
  const shared = { id, name, required, "aria-invalid": bad, "aria-describedby": schema.description ? `${id}-about` : undefined };
  const change = (event) => set(event.target.type === "checkbox" ? event.target.checked : event.target.value);
  let input;
  if (kind === "boolean") input = html`<input ...${shared} required=${false} type="checkbox" checked=${Boolean(value)} onChange=${change} />`;
  else if (kind === "choice") {
    input = html`<select ...${shared} value=${value ?? ""} onChange=${change}>
      <option value="">${required ? "choose…" : "–"}</option>
      ${(schema.enum ?? [schema.const]).map((each) => html`<option value=${String(each)}>${String(each)}</option>`)}
    </select>`;
  } else if (kind === "integer" || kind === "number") {
    input = html`<input ...${shared} type="number" step=${kind === "integer" ? 1 : "any"} min=${schema.minimum} max=${schema.maximum} value=${value ?? ""} onInput=${change} />`;
  } else if (kind === "json") {
    input = html`<textarea ...${shared} class="code" rows="3" spellcheck="false" placeholder=${schema.type === "array" ? "[ … ]" : "{ … }"} value=${value ?? ""} onInput=${change}></textarea>`;
  } else {
    const long = (schema.maxLength ?? 200) > 80 && !schema.format;
    input = html`<textarea ...${shared} rows=${long ? Math.min(8, Math.max(1, String(value ?? "").split("\n").length)) : 1} placeholder=${schema.format ?? ""} value=${value ?? ""} onInput=${change}></textarea>`;
  }
  const type = kind === "json" ? schema.type ?? "JSON" : kind === "choice" ? "" : kind;
  return html`<div class=${`field ${kind}`}>
    <label for=${id}>${schema.title ?? name}${required && html`<b title="required"> *</b>`} <span class="dim">${type}</span></label>
    ${input}
    ${schema.description && html`<p class="about" id=${`${id}-about`}>${schema.description}</p>`}
  </div>`;
}

// `submit` is given the content, and may throw an error with a `field`.
export function SchemaForm({ schema, label, submit, children, disabled, idPrefix = "f" }) {
  const [values, setValues] = useState(() => initial(schema));
  const hasFields = Object.keys(schema?.properties ?? {}).length > 0;
  const [raw, setRaw] = useState(hasFields || schema?.additionalProperties === false ? null : "{}");
  const [said, setSaid] = useState({});
  const [busy, setBusy] = useState(false);
  useEffect(() => setValues(initial(schema)), [JSON.stringify(schema)]);
  async function send(event) {
    event.preventDefault();
    setSaid({});
    setBusy(true);
    try {
      let made;
      if (raw === null) made = content(schema, values);
      else {
        try {
          made = JSON.parse(raw || "null");
        } catch (error) {
          throw new Error(`this is no JSON: ${error.message}`);
        }
      }
      await submit(made);
    } catch (error) {
      setSaid({ text: error.message, field: error.field });
    }
    setBusy(false);
  }
  function toggle() {
    if (raw === null) {
      try {
        setRaw(JSON.stringify(content(schema, values), null, 2));
      } catch (error) {
        setSaid({ text: error.message, field: error.field });
      }
    } else setRaw(null);
  }
  return html`<form class="schema-form" onSubmit=${send}>
    ${raw === null
      ? Object.entries(schema?.properties ?? {}).map(([name, each]) => html`<${Field} key=${name} id=${`${idPrefix}-${name}`} name=${name} schema=${resolved(each, schema)}
          required=${(schema.required ?? []).includes(name)} value=${values[name]} bad=${said.field === name}
          set=${(value) => setValues((now) => ({ ...now, [name]: value }))} />`)
      : html`<textarea class="code" aria-label="JSON" rows="8" spellcheck="false" value=${raw} onInput=${(event) => setRaw(event.target.value)}></textarea>`}
    ${said.text && html`<p class="error" role="alert">${said.text}</p>`}
    <div class="buttons">
      <button class="primary" type="submit" disabled=${busy || disabled}>${busy ? "…" : label}</button>
      ${children}
      ${hasFields && html`<button type="button" class="quiet right" onClick=${toggle}>${raw === null ? "as JSON" : "as a form"}</button>`}
    </div>
  </form>`;
}
