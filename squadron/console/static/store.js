// What the server told, by section and key, and how parts of the page hear of changes.
import { useEffect, useState } from "/static/vendor/htm-preact.js";

const rows = {};
const listeners = new Map();
const histories = new Map();
export const POINTS = 90;
let connected = false;

function wake(section) {
  for (const listener of listeners.get(section) ?? []) listener();
}

function setConnected(value) {
  if (connected === value) return;
  connected = value;
  wake("connected");
}

function hear(message) {
  if (message.kind === "lost") {
    setConnected(false);
    // Whoever is not logged in any more has to do so.
    fetch("/api/whoami").then((answer) => answer.status === 401 && location.replace("/login"), () => {});
    return;
  }
  setConnected(true);
  if (message.kind === "all") {
    const names = new Set([...Object.keys(rows), ...Object.keys(message.rows)]);
    for (const name of names) {
      rows[name] = message.rows[name] ?? {};
      wake(name);
    }
    return;
  }
  const { section, set, gone } = message.change;
  // A new object, so that whoever compares sees the difference.
  const next = { ...rows[section] };
  for (const key of gone) delete next[key];
  for (const key of Object.keys(set)) delete next[key]; // the newest last
  rows[section] = Object.assign(next, set);
  wake(section);
}

export function connect() {
  if (globalThis.SharedWorker) {
    const { port } = new SharedWorker("/static/feed.js");
    port.onmessage = (event) => hear(event.data);
    addEventListener("pagehide", () => port.postMessage("bye"));
    addEventListener("pageshow", (event) => event.persisted && location.reload());
  } else {
    const source = new EventSource("/api/feed");
    source.addEventListener("all", (event) => hear({ kind: "all", rows: JSON.parse(event.data) }));
    source.addEventListener("change", (event) => hear({ kind: "change", change: JSON.parse(event.data) }));
    source.addEventListener("error", () => hear({ kind: "lost" }));
  }
  setInterval(remember, 1000);
}

function remember() {
  for (const [name, row] of Object.entries(rows.agents ?? {})) {
    const points = histories.get(name) ?? [];
    points.push({ rate: row.rates?.[0] ?? 0, waiting: row.waiting ?? 0, running: row.running ?? 0 });
    if (points.length > POINTS) points.shift();
    histories.set(name, points);
  }
  for (const name of histories.keys()) if (!rows.agents?.[name]) histories.delete(name);
}

export const history = (agent) => histories.get(agent) ?? [];

function useWake(section) {
  const [, again] = useState(0);
  useEffect(() => {
    let waiting = 0;
    // Many changes at once are one drawing.
    const listener = () => (waiting ||= requestAnimationFrame(() => ((waiting = 0), again((n) => n + 1))));
    if (!listeners.has(section)) listeners.set(section, new Set());
    listeners.get(section).add(listener);
    again((n) => n + 1); // what came between the drawing and now
    return () => {
      cancelAnimationFrame(waiting);
      listeners.get(section).delete(listener);
    };
  }, [section]);
}

const EMPTY = {};

export function useSection(section) {
  useWake(section);
  return rows[section] ?? EMPTY;
}

export function known(section) {
  return section in rows;
}

export function useConnected() {
  useWake("connected");
  return connected;
}

export async function call(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "content-type": "application/json", "x-squadron-console": "1" },
    body: JSON.stringify(body),
  };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the console does not answer");
  }
  if (answer.status === 401) location.replace("/login");
  if (!answer.ok) {
    const { error } = await answer.json().catch(() => ({ error: { message: answer.statusText } }));
    const failure = new Error(error.hint ? `${error.message} (${error.hint})` : error.message);
    failure.field = error.field ?? "";
    throw failure;
  }
  return answer;
}

export const get = async (path) => (await call(path)).json();
export const post = async (path, body = {}) => (await call(path, body)).json();
export const path = (...parts) => parts.map((part) => encodeURIComponent(part)).join("/");
