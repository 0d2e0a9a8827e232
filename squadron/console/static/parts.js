// Parts that all pages share.
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "/static/vendor/htm-preact.js";
import { post } from "/static/store.js";

// --- words ----------------------------------------------------------------------------------------------

export const number = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en"));
/** So many of a thing: `1 agent`, `1,200 agents`. */
export const counted = (many, thing) => `${number(many)} ${thing}${many === 1 ? "" : "s"}`;

export function rate(value) {
  if (value === null || value === undefined) return "–";
  return value === 0 ? "0" : value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.0095) return `${(value * 1000).toFixed(1)} ms`;
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 59.95) return `${value.toFixed(1)} s`;
  // Rounded before they are taken apart, or 119.6 s would be 1 m 60 s.
  const whole = Math.round(value), minutes = Math.round(value / 60);
  if (whole < 3600) return `${Math.floor(whole / 60)} m ${whole % 60} s`;
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${minutes % 60} m`;
  return `${Math.round(value / 86400)} d`;
}

export const money = (usd) => (usd ? `$${usd < 0.01 ? usd.toFixed(4) : usd.toFixed(2)}` : "");
export const ago = (at) => (at ? `${seconds(Math.max(0, Date.now() / 1000 - at))} ago` : "–");
export const clock = (at) => (at ? new Date(at * 1000).toLocaleTimeString("en-GB") : "");
export const date = (at) => (at ? new Date(at * 1000).toISOString().replace("T", " ").slice(0, 19) + " UTC" : "");
export function bytes(n) {
  return n < 1024 ? `${n} B` : n < 1048576 ? `${(n / 1024).toFixed(1)} KB` : n < 1073741824 ? `${(n / 1048576).toFixed(1)} MB` : `${(n / 1073741824).toFixed(1)} GB`;
}
export const pretty = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2) ?? "");

// --- where we are -----------------------------------------------------------------------------------------

export function parsed() {
  const [place, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [page = "", ...rest] = place.split("/");
  return { page: page || "agents", id: decodeURIComponent(rest.join("/")), query: new URLSearchParams(query) };
}

export function go(page, id = "", query = parsed().query) {
  const text = query.toString();
  location.hash = `/${page}${id ? `/${encodeURIComponent(id)}` : ""}${text ? `?${text}` : ""}`;
}

export function setQuery(name, value) {
  const { page, id, query } = parsed();
  if (value) query.set(name, value);
  else query.delete(name);
  const text = query.toString();
  history.replaceState(null, "", `#/${page}${id ? `/${encodeURIComponent(id)}` : ""}${text ? `?${text}` : ""}`);
  dispatchEvent(new HashChangeEvent("hashchange"));
}

export const fits = (words, ...texts) => {
  const all = texts.join(" ").toLowerCase();
  return words.toLowerCase().split(/\s+/).every((word) => all.includes(word));
};

// --- telling ------------------------------------------------------------------------------------------------

let toast = () => {};

export function Toasts() {
  const [shown, setShown] = useState([]);
  toast = (text, bad = false) => {
    const it = { id: Math.random(), text, bad };
    setShown((now) => [...now.slice(-3), it]);
    setTimeout(() => setShown((now) => now.filter((each) => each !== it)), bad ? 8000 : 3500);
  };
  return html`<div class="toasts" role="status" aria-live="polite">
    ${shown.map((it) => html`<div key=${it.id} class=${`toast ${it.bad ? "bad" : ""}`}>${it.text}</div>`)}
  </div>`;
}

export const say = (text) => toast(text);
export const complain = (error) => toast(error.message ?? String(error), true);

// Do something, say what came of it, and let nobody press twice meanwhile.
export function Deed({ label, title, path, body, done, after, confirm, kind = "", disabled, icon, name }) {
  const [busy, setBusy] = useState(false);
  async function act(event) {
    event.stopPropagation();
    if (confirm && !(await ask(confirm, label))) return;
    setBusy(true);
    try {
      const answer = await post(path, typeof body === "function" ? body() : body ?? {});
      if (done) say(typeof done === "function" ? done(answer) : done);
      after?.(answer);
    } catch (error) {
      complain(error);
    }
    setBusy(false);
  }
  return html`<button type="button" class=${kind} data-deed=${name ?? label} title=${title} aria-label=${title ?? label}
    disabled=${disabled || busy} aria-busy=${busy} onClick=${act}>${icon ?? label}</button>`;
}

let ask = async () => false;

export function Confirm() {
  const [question, setQuestion] = useState(null);
  const dialog = useRef();
  ask = (text, label) => new Promise((resolve) => setQuestion({ text, label, resolve }));
  useLayoutEffect(() => {
    if (question) dialog.current?.showModal();
  }, [question]);
  if (!question) return null;
  const end = (yes) => {
    question.resolve(yes);
    setQuestion(null);
  };
  return html`<dialog ref=${dialog} class="confirm" onCancel=${() => end(false)} aria-label="Are you sure?">
    <p>${question.text}</p>
    <div class="buttons">
      <button type="button" onClick=${() => end(false)}>Cancel</button>
      <button type="button" class="danger" data-deed="confirm" onClick=${() => end(true)}>${question.label}</button>
    </div>
  </dialog>`;
}

// --- looks --------------------------------------------------------------------------------------------------

const TONES = {
  RUNNING: "good", HEALTHY: "good", result: "good", finished: "good", done: "good", answered: "good", open: "busy",
  DEPLOYING: "busy", UPDATING: "busy", running: "busy", UPSCALING: "busy", DOWNSCALING: "busy", NOT_STARTED: "calm",
  DEPLOY_FAILED: "bad", UNHEALTHY: "bad", failed: "bad", dead_lettered: "bad", rejected: "bad", undeliverable: "bad",
  timed_out: "warn", cancelled: "warn", stale: "warn", busy: "warn", again: "warn", dead: "bad", cancel: "warn",
  task: "busy", event: "calm", bridge: "warn", query: "warn", answer: "good", "bids?": "busy", bid: "busy",
};

export const Badge = ({ word, tone }) =>
  html`<span class=${`badge ${tone ?? TONES[word] ?? "calm"}`}>${String(word).replaceAll("_", " ").toLowerCase()}</span>`;

export const Dot = ({ word }) => html`<span class=${`dot ${TONES[word] ?? "calm"}`} title=${word} aria-label=${word}></span>`;

export function Meter({ value, most, label }) {
  const part = most ? Math.min(1, value / most) : 0;
  return html`<span class="meter" title=${label}><span class=${part >= 1 ? "full" : ""} style=${{ width: `${part * 100}%` }}></span></span>`;
}

export function Spark({ points, name, tone = "" }) {
  const width = 300, height = 44;
  const values = points.map((point) => point[name]);
  const top = Math.max(1, ...values);
  const at = (value, i) => `${((i / Math.max(1, points.length - 1)) * width).toFixed(1)},${(height - 2 - (value / top) * (height - 6)).toFixed(1)}`;
  const line = values.map(at).join(" ");
  return html`<svg class=${`spark ${tone}`} viewBox=${`0 0 ${width} ${height}`} preserveAspectRatio="none" role="img" aria-label=${name}>
    ${values.length > 1 && html`<polygon points=${`0,${height} ${line} ${width},${height}`} /><polyline points=${line} />`}
  </svg>`;
}

export function Command({ text }) {
  const copy = () => navigator.clipboard?.writeText(text).then(() => say("Copied."), () => {});
  return html`<button type="button" class="command" title="Copy" onClick=${copy}><span>$</span> ${text}</button>`;
}

export const Empty = ({ title, children }) => html`<div class="empty"><h2>${title}</h2><p>${children}</p></div>`;

export function Search({ placeholder }) {
  const input = useRef();
  return html`<input ref=${input} type="search" class="search" aria-label=${placeholder} placeholder=${placeholder}
    value=${parsed().query.get("q") ?? ""} onInput=${(event) => setQuery("q", event.target.value)}
    onKeyDown=${(event) => event.key === "Escape" && (event.target.blur(), setQuery("q", ""))} />`;
}

export function Drawer({ title, wide, children, onClose }) {
  const panel = useRef();
  useEffect(() => panel.current?.focus(), []);
  return html`<aside ref=${panel} class=${`drawer ${wide ? "wide" : ""}`} tabindex="-1" aria-label=${title}>
    <header><h2>${title}</h2><button type="button" class="quiet" aria-label="Close" title="Close (Esc)" onClick=${onClose}>✕</button></header>
    <div class="drawer-body">${children}</div>
  </aside>`;
}

// Rows of one height, of which only those are drawn that are seen: ten thousand cost what thirty do.
export function Rows({ items, keyOf, row, height = 44, selected, onOpen, head, label, follow }) {
  const box = useRef();
  const [view, setView] = useState({ top: 0, high: 600 });
  const [active, setActive] = useState(0);
  const measure = () => {
    const { scrollTop, clientHeight } = box.current;
    setView((now) => (now.top === scrollTop && now.high === clientHeight ? now : { top: scrollTop, high: clientHeight }));
  };
  useLayoutEffect(() => {
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(box.current);
    return () => observer.disconnect();
  }, []);
  useLayoutEffect(() => {
    if (follow) box.current.scrollTop = 0;
  }, [items, follow]);
  const first = Math.max(0, Math.floor(view.top / height) - 6);
  const last = Math.min(items.length, Math.ceil((view.top + view.high) / height) + 6);
  const at = Math.min(active, items.length - 1);
  function move(to) {
    const next = Math.max(0, Math.min(items.length - 1, to));
    setActive(next);
    const { scrollTop, clientHeight } = box.current;
    if (next * height < scrollTop) box.current.scrollTop = next * height;
    else if ((next + 1) * height > scrollTop + clientHeight) box.current.scrollTop = (next + 1) * height - clientHeight;
  }
  function press(event) {
    if (event.target !== box.current) return;
    const page = Math.floor(view.high / height);
    const moves = { ArrowDown: at + 1, j: at + 1, ArrowUp: at - 1, k: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: items.length };
    if (event.key in moves) {
      event.preventDefault();
      move(moves[event.key]);
    } else if (event.key === "Enter" && items[at]) onOpen?.(items[at]);
  }
  return html`<div class="table">
    ${head && html`<div class="row head" role="row">${head}</div>`}
    <div class="rows" ref=${box} tabindex="0" role="grid" aria-label=${label} aria-rowcount=${items.length} onScroll=${measure} onKeyDown=${press}>
      <div class="space" style=${{ height: `${items.length * height}px` }}>
        ${items.slice(first, last).map((item, i) => {
          const key = keyOf(item);
          const classes = `row ${key === selected ? "selected" : ""} ${first + i === at ? "active" : ""} ${onOpen ? "opens" : ""}`;
          return html`<div key=${key} data-key=${key} role="row" aria-rowindex=${first + i + 1} aria-selected=${key === selected} class=${classes}
            style=${{ top: `${(first + i) * height}px`, height: `${height}px` }}
            onClick=${() => { setActive(first + i); onOpen?.(item); }}>${row(item)}</div>`;
        })}
      </div>
    </div>
  </div>`;
}

export function useSorted(items, orders, initial) {
  const { query } = parsed();
  const name = query.get("sort") ?? initial;
  const sorted = useMemo(() => {
    const order = orders[name] ?? orders[initial];
    return [...items].sort(order);
  }, [items, name]);
  const Head = ({ by, children, right, opt }) =>
    html`<button type="button" role="columnheader" class=${`sort ${right ? "right" : ""} ${opt ? "opt" : ""} ${name === by ? "on" : ""}`}
      aria-sort=${name === by ? "descending" : "none"} onClick=${() => setQuery("sort", by === initial ? "" : by)}>${children}</button>`;
  return [sorted, Head];
}

export function useFetched(load, keys) {
  const [state, setState] = useState({});
  useEffect(() => {
    let gone = false;
    load().then((value) => !gone && setState({ value }), (error) => !gone && setState((now) => ({ ...now, error })));
    return () => { gone = true; };
  }, keys);
  return state;
}
