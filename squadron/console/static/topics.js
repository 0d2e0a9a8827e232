// Topics: what is served, with schemas and examples, and a form to ask one.
import { html, useMemo, useRef, useState } from "/static/vendor/htm-preact.js";
import { call, get, path, useSection } from "/static/store.js";
import { Badge, Command, Drawer, Empty, Rows, Search, counted, fits, go, parsed, pretty, seconds, useFetched } from "/static/parts.js";
import { SchemaForm } from "/static/form.js";

function Answer({ told }) {
  const { outcome, chunks, task, trouble } = told;
  return html`<div class="answer" aria-live="polite">
    <p class="line">${outcome ? html`<${Badge} word=${outcome.kind} />` : html`<${Badge} word="running" />`} <code class="dim">${task}</code>
      ${outcome && html`<span class="dim">${seconds(outcome.latency / 1000)}${outcome.tokens ? ` · ${outcome.tokens} tokens` : ""}</span>`}</p>
    ${chunks.length > 0 && html`<pre class="chunks">${chunks.map(pretty).join(chunks.every((each) => typeof each === "string" && each.length < 30) ? "" : "\n")}</pre>`}
    ${trouble && html`<p class="error">${trouble}</p>`}
    ${outcome && html`<pre class=${outcome.success ? "data" : "trouble"}>${outcome.success ? pretty(outcome.data) : outcome.error?.message}</pre>`}
  </div>`;
}

function Ask({ topic, locked }) {
  const [told, setTold] = useState(null);
  const [within, setWithin] = useState("60");
  const [name, setName] = useState(topic.name);
  const run = useRef(0);
  async function submit(content) {
    const mine = ++run.current;
    const answer = await call("/api/ask", { topic: name, content, within_s: Number(within) });
    let now = { chunks: [] };
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done || mine !== run.current) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const it = JSON.parse(line);
        if (it.restarted) now = { ...now, chunks: [] };
        else if ("chunk" in it) now = { ...now, chunks: [...now.chunks, it.chunk] };
        else now = { ...now, ...it };
      }
      setTold(now);
    }
  }
  return html`<h3>Ask</h3>
    ${topic.name.includes("*") && html`<div class="field"><label for="ask-topic">Topic</label><input id="ask-topic" value=${name} onInput=${(e) => setName(e.target.value)} /></div>`}
    <${SchemaForm} schema=${topic.input_schema} label="Ask" submit=${submit} disabled=${locked} idPrefix="ask">
      <label class="inline">within <input class="short" type="number" min="1" max="3600" value=${within} onInput=${(e) => setWithin(e.target.value)} /> s</label>
    </${SchemaForm}>
    ${locked && html`<p class="dim">This console is read-only.</p>`}
    ${told && html`<${Answer} told=${told} />`}`;
}

function Detail({ id, locked, close }) {
  const { value: topic, error } = useFetched(() => get(`/api/topics/${path(id)}`), [id]);
  return html`<${Drawer} title=${id} onClose=${close}>
    ${error && html`<p class="error">${error.message}</p>`}
    ${topic && html`
      <p>${topic.description || html`<span class="dim">No description.</span>`}</p>
      <p class="chips"><a href=${`#/agents/${topic.agent}`}>${topic.agent}</a>${topic.tags.map((tag) => html`<span class="tag">${tag}</span>`)}
        ${topic.sealed && html`<span class="tag pin">sealed</span>`}${topic.approval && html`<span class="tag pin" title=${topic.approval}>needs approval</span>`}${topic.allow.length > 0 && html`<span class="tag pin">only some may ask</span>`}</p>
      <${Ask} key=${id} topic=${topic} locked=${locked} />
      ${topic.examples.length > 0 && html`<h3>Examples</h3><ul>${topic.examples.map((each) => html`<li>${each}</li>`)}</ul>`}
      <h3>Takes</h3><pre class="data">${pretty(topic.input_schema)}</pre>
      <h3>Returns</h3><pre class="data">${Object.keys(topic.output_schema).length ? pretty(topic.output_schema) : "anything"}</pre>
      <${Command} text=${`squadron ask ${id} '{}'`} />`}
  </${Drawer}>`;
}

export function Topics({ id, locked, close }) {
  const rows = useSection("topics");
  const words = parsed().query.get("q") ?? "";
  const found = useMemo(() => Object.values(rows).filter((each) => fits(words, each.topic, each.agent, each.description, ...each.tags)).sort((a, b) => a.topic.localeCompare(b.topic)), [rows, words]);
  const row = (each) => html`<span class="clip"><b>${each.topic}</b></span><span class="clip opt">${each.agent}</span><span class="clip dim">${each.description}</span><span class="opt chips">${each.tags.slice(0, 2).map((tag) => html`<span class="tag">${tag}</span>`)}</span>`;
  return html`<div class="page topics"><div class="list"><div class="bar"><${Search} placeholder="Find topics" /><span class="dim">${counted(found.length, "topic")}</span></div>
    ${found.length ? html`<${Rows} items=${found} keyOf=${(each) => each.topic} row=${row} label="Topics" selected=${id} onOpen=${(each) => go("topics", each.topic)}
      head=${html`<span>Topic</span><span class="opt">Agent</span><span>What it is good for</span><span class="opt">Tags</span>`} />`
      : html`<${Empty} title="No topics">Nothing that is served fits.</${Empty}>`}</div>
    ${id && html`<${Detail} key=${id} id=${id} locked=${locked} close=${close} />`}</div>`;
}
