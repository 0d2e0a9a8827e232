// The frame: navigation, keys, themes, and which page is shown.
import { html, render, useEffect, useState } from "/static/vendor/htm-preact.js";
import { connect, useConnected, useSection } from "/static/store.js";
import { Confirm, Toasts, go, parsed } from "/static/parts.js";
import { Agents } from "/static/agents.js";
import { Topics } from "/static/topics.js";
import { Runs } from "/static/runs.js";
import { Questions } from "/static/questions.js";
import { Events, Letters, Lite, Negotiations, Nodes } from "/static/others.js";

const PAGES = [
  ["agents", "Agents", Agents, "agents"], ["topics", "Topics", Topics, "topics"], ["runs", "Runs", Runs, "runs"],
  ["questions", "Questions", Questions, "questions"], ["letters", "Dead letters", Letters, "letters"], ["lite", "Lite topics", Lite, "lite"],
  ["negotiations", "Negotiations", Negotiations, "negotiations"], ["events", "Events", Events, ""], ["nodes", "Nodes", Nodes, "nodes"],
];

const KEYS = [["1 … 9", "another page"], ["/", "find"], ["↑ ↓ or k j", "choose a row"], ["Enter", "open it"], ["Esc", "close"], ["t", "dark or light"], ["?", "these keys"]];

function NavItem({ page, label, section, i, current }) {
  const count = Object.keys(useSection(section || "none")).length;
  const urgent = ["questions", "letters"].includes(page) && count > 0;
  return html`<a href=${`#/${page}`} class=${current ? "current" : ""} aria-current=${current ? "page" : undefined} title=${`${label} (${i + 1})`}>
    <span>${label}</span>${section && count > 0 && html`<span class=${`count ${urgent ? "urgent" : ""}`}>${count.toLocaleString("en")}</span>`}</a>`;
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  localStorage.setItem("theme", name);
}

const isDark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

function App() {
  const [place, setPlace] = useState(parsed());
  const [help, setHelp] = useState(false);
  const connected = useConnected();
  const { read_only: locked } = useSection("console");
  const about = useSection("about");
  const troubles = Object.entries(useSection("troubles"));
  const [, label, Page] = PAGES.find(([name]) => name === place.page) ?? PAGES[0];
  const close = () => go(parsed().page);
  useEffect(() => {
    const moved = () => setPlace(parsed());
    function press(event) {
      if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
      const writing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
      if (event.key === "Escape") {
        setHelp(false);
        if (writing) event.target.blur();
        else if (parsed().id) close();
        document.querySelector(".rows")?.focus();
      }
      if (writing) return;
      const number = Number(event.key);
      if (number >= 1 && number <= PAGES.length) location.hash = `/${PAGES[number - 1][0]}`;
      else if (event.key === "/") { event.preventDefault(); document.querySelector(".search")?.focus(); }
      else if (event.key === "?") setHelp((now) => !now);
      else if (event.key === "t") setTheme(isDark() ? "light" : "dark");
      else if (["j", "k", "ArrowDown", "ArrowUp"].includes(event.key) && event.target === document.body) document.querySelector(".rows")?.focus();
    }
    addEventListener("hashchange", moved);
    addEventListener("keydown", press);
    return () => { removeEventListener("hashchange", moved); removeEventListener("keydown", press); };
  }, []);
  useEffect(() => { document.title = `${label} · Squadron ${about.environment ?? ""}`; }, [label, about.environment]);
  return html`<nav aria-label="Pages">
      <a class="brand" href="#/agents"><img src="/static/icon.svg" alt="" width="26" height="26" /><span>Squadron<small>${about.environment ?? " "}</small></span></a>
      <div class="links">${PAGES.map(([page, name, , section], i) => html`<${NavItem} key=${page} page=${page} label=${name} section=${section} i=${i} current=${page === place.page} />`)}</div>
      <div class="foot"><span class=${`dot ${connected ? "good" : "bad"}`}></span> <span id="connection">${connected ? "live" : "connecting…"}</span>
        ${locked && html`<span class="tag pin">read-only</span>`}<button type="button" class="quiet right" aria-label="Dark or light" title="Dark or light (t)" onClick=${() => setTheme(isDark() ? "light" : "dark")}>◐</button></div>
    </nav>
    <main><header class="top"><h1>${label}</h1><span class="right"></span>${about.dashboard && html`<a class="dim" href=${`${about.dashboard}/#/serve`} target="_blank" rel="noreferrer">Ray dashboard ↗</a>`}<button type="button" class="quiet" aria-label="Keys" title="Keys (?)" onClick=${() => setHelp(!help)}>?</button></header>
      ${troubles.length > 0 && html`<div class="troubles" role="alert">${[...new Set(troubles.map(([, what]) => what))].slice(0, 2).join(" · ")}</div>`}
      <${Page} id=${place.id} locked=${Boolean(locked)} close=${close} /></main>
    ${help && html`<div class="help" role="dialog" aria-label="Keys"><h2>Keys</h2><dl>${KEYS.map(([key, what]) => html`<dt><kbd>${key}</kbd></dt><dd>${what}</dd>`)}</dl></div>`}
    <${Confirm} /><${Toasts} />`;
}

const theme = localStorage.getItem("theme");
if (theme) document.documentElement.dataset.theme = theme;
connect();
render(html`<${App} />`, document.getElementById("app"));
