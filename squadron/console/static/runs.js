// Runs that think: a tree of rounds and calls with what they cost, a timeline, and questions where they wait.
import { html, useEffect, useMemo, useState } from "/static/vendor/htm-preact.js";
import { get, path, useSection } from "/static/store.js";
import { Badge, Command, Deed, Drawer, Empty, Rows, Search, ago, counted, fits, go, money, number, parsed, pretty, seconds, setQuery } from "/static/parts.js";
import { Question } from "/static/questions.js";

const failed = (call) => Object.keys(call.outcomes).some((kind) => kind !== "result");

function Call({ call, live, words, onlyFailed, questions, locked }) {
  const outcomes = Object.entries(call.outcomes);
  const waits = questions.find((each) => each.query === call.query);
  const word = outcomes.length ? outcomes.map(([kind, count]) => (count > 1 ? `${count} ${kind}` : kind)).join(", ") : call.query && !call.answered_by ? "waits for a person" : live ? "running" : "no outcome";
  const tone = outcomes.length ? (failed(call) ? "bad" : "good") : call.query && call.answered_by === null ? "warn" : live ? "busy" : "calm";
  return html`<li class="call"><div class="node"><b>${call.name}</b>${call.tasks > 1 ? html` <span class="dim">× ${call.tasks}</span>` : ""} <${Badge} word=${word} tone=${tone} />
      <span class="dim">${[call.seconds !== null && seconds(call.seconds), call.tokens && `${number(call.tokens)} tokens`, money(call.usd), call.again && `${call.again} tried again`, call.answered_by && `answered by ${call.answered_by}`].filter(Boolean).join(" · ")}</span></div>
    ${call.reason && html`<p class="reason">${call.reason}</p>`}
    ${waits && html`<${Question} asked=${waits} locked=${locked} />`}
    ${call.runs.map((run) => html`<${Tree} key=${run.info.run} run=${run} words=${words} onlyFailed=${onlyFailed} questions=${questions} locked=${locked} inner />`)}</li>`;
}

function Tree({ run, words, onlyFailed, questions, locked, inner }) {
  const live = run.info.state === "running";
  const shows = (call) => (!onlyFailed || failed(call) || call.runs.length) && (!words || fits(words, call.name, call.reason, JSON.stringify(call.runs)));
  return html`<div class=${inner ? "inner" : "tree"}>
    ${inner && html`<p class="line"><a href=${`#/runs/${run.info.run}`}>${run.info.run.slice(0, 12)}</a> <${Badge} word=${run.info.state} /> ${run.info.title}</p>`}
    ${run.rounds.map((round) => {
      const calls = round.calls.filter(shows);
      if ((onlyFailed || words) && !calls.length && !(words && fits(words, round.text))) return null;
      return html`<details class="round" open key=${round.round}><summary><b>Round ${round.round}</b> <span class="dim">${[round.model, seconds(round.seconds), `${number(round.tokens)} tokens`, money(round.usd)].filter(Boolean).join(" · ")}</span></summary>
        ${round.failed.map((each) => html`<p class="reason">${each}</p>`)}${round.text && html`<p class="thought">${round.text}</p>`}
        <ul>${calls.map((call) => html`<${Call} key=${call.id} call=${call} live=${live} words=${words} onlyFailed=${onlyFailed} questions=${questions} locked=${locked} />`)}</ul></details>`;
    })}
    ${run.error && html`<pre class="trouble">${run.error}</pre>`}
    ${run.answer !== null && run.answer !== undefined && html`<h3>Answer</h3><pre class="data">${pretty(run.answer.answer ?? run.answer)}</pre>`}
  </div>`;
}

function Timeline({ timeline }) {
  const lanes = timeline.lanes.slice(0, 300), row = 22, left = 190, width = 720;
  const x = (at) => left + (at / Math.max(0.001, timeline.seconds)) * (width - left - 60);
  return html`<svg class="timeline" viewBox=${`0 0 ${width} ${lanes.length * row + 4}`} role="img" aria-label="Timeline">
    ${lanes.map((lane, i) => html`<g key=${i} transform=${`translate(0 ${i * row + 2})`}>
      <text x=${6 + lane.depth * 10} y="14" class=${lane.kind === "call" ? "" : "strong"}>${lane.name.slice(0, 26 - lane.depth * 2)}</text>
      <line x1=${left} x2=${width - 60} y1="10" y2="10" class="base" />
      ${lane.bars.map((bar) => html`<rect class=${`b-${bar.kind}`} x=${x(bar.began_s)} y="4" rx="2" height="12" width=${Math.max(2, x(bar.ended_s ?? timeline.seconds) - x(bar.began_s))}><title>${bar.kind} ${seconds((bar.ended_s ?? timeline.seconds) - bar.began_s)}</title></rect>`)}
      <text x=${width - 4} y="14" text-anchor="end" class="dim">${seconds(lane.seconds)}</text></g>`)}
  </svg>
  <p class="legend">${[["think", "thinks"], ["wait", "waits"], ["work", "works"], ["person", "waits for a person"], ["vain", "in vain"]].map(([kind, words]) => html`<span><i class=${`b-${kind}`}></i>${words}</span>`)}</p>`;
}

function Detail({ info, locked, close }) {
  const [told, setTold] = useState({});
  const questions = Object.values(useSection("questions"));
  const words = parsed().query.get("in") ?? "", onlyFailed = parsed().query.get("only") === "failed";
  useEffect(() => {
    let gone = false, timer = 0;
    const load = () => get(`/api/runs/${path(info.run)}`).then((value) => gone || setTold({ value }), (error) => gone || setTold((now) => ({ ...now, error })))
      .then(() => { if (!gone && info.state === "running") timer = setTimeout(load, 1500); });
    load();
    return () => { gone = true; clearTimeout(timer); };
  }, [info.run, info.state, info.updated]);
  const { value, error } = told;
  const inTree = new Set(JSON.stringify(value?.run ?? "").match(/"query": ?"[^"]+"/g)?.map((each) => each.split('"')[3]));
  const mine = questions.filter((each) => [info.task, info.run].includes(each.about) && !inTree.has(each.query));
  return html`<${Drawer} title=${info.title || info.run} wide onClose=${close}>
    <p class="line"><${Badge} word=${info.state} /> <span class="dim">${info.agent} ${info.topic} · ${number(info.tokens)} tokens ${money(info.usd)} · began ${ago(info.started)}</span>
      ${info.state === "running" && html`<${Deed} label="Stop" name="cancel" kind="danger right" disabled=${locked} path=${`/api/runs/${path(info.run)}/cancel`} confirm="Stop this run, and what it asked of others?" done="It is asked to stop." />`}</p>
    ${mine.map((asked) => html`<${Question} key=${asked.query} asked=${asked} locked=${locked} />`)}
    ${error && html`<p class="error">${error.message}</p>`}
    ${value && html`<h3>Timeline</h3><${Timeline} timeline=${value.timeline} />
      <div class="bar flat"><h3>Rounds and calls</h3><input type="search" class="search" aria-label="Find in this run" placeholder="Find in this run" value=${words} onInput=${(e) => setQuery("in", e.target.value)} />
        <label class="inline"><input type="checkbox" checked=${onlyFailed} onChange=${(e) => setQuery("only", e.target.checked ? "failed" : "")} /> failed only</label></div>
      <${Tree} run=${value.run} words=${words} onlyFailed=${onlyFailed} questions=${questions} locked=${locked} />`}
    <${Command} text=${`squadron trace ${info.run}`} />
  </${Drawer}>`;
}

export function Runs({ id, locked, close }) {
  const rows = useSection("runs");
  const words = parsed().query.get("q") ?? "";
  const found = useMemo(() => Object.values(rows).filter((each) => fits(words, each.title, each.run, each.agent, each.state)).sort((a, b) => b.started - a.started), [rows, words]);
  const row = (each) => html`<span><${Badge} word=${each.state} /></span><span class="clip"><b>${each.title || each.run}</b></span><span class="clip opt">${each.agent}</span>
    <span class="right opt">${each.rounds}</span><span class="right opt">${number(each.tokens)}</span><span class="right">${money(each.usd) || "–"}</span><span class="right dim">${ago(each.started)}</span>`;
  return html`<div class="page runs"><div class="list"><div class="bar"><${Search} placeholder="Find runs" /><span class="dim">${counted(found.length, "run")}</span></div>
    ${found.length ? html`<${Rows} items=${found} keyOf=${(each) => each.run} row=${row} label="Runs" selected=${id} onOpen=${(each) => go("runs", each.run)}
      head=${html`<span>State</span><span>Goal</span><span class="opt">Agent</span><span class="right opt">Rounds</span><span class="right opt">Tokens</span><span class="right">Cost</span><span class="right">Began</span>`} />`
      : html`<${Empty} title="No runs">What supervisors and LLM agents think appears here: <code>squadron run "goal"</code></${Empty}>`}</div>
    ${rows[id] && html`<${Detail} key=${id} info=${rows[id]} locked=${locked} close=${close} />`}</div>`;
}
