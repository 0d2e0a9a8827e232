// Dead letters, lite topics, negotiations, events and nodes.
import { html, useEffect, useMemo, useState } from "/static/vendor/htm-preact.js";
import { get, path, post, useSection } from "/static/store.js";
import { Badge, Command, Deed, Drawer, Empty, Meter, Rows, Search, ago, bytes, clock, complain, counted, date, fits, go, number, parsed, pretty, say, seconds, useFetched } from "/static/parts.js";

// --- dead letters -----------------------------------------------------------------------------------------

function Letter({ id, letter, locked, close }) {
  const { value, error } = useFetched(() => get(`/api/letters/${path(letter.agent, letter.token)}`), [id]);
  return html`<${Drawer} title=${letter.topic || letter.id} onClose=${close}>
    <p class="line"><code>${letter.id}</code> <span class="dim">${letter.agent} · ${counted(letter.attempts, "attempt")} · ${date(letter.buried_at)}</span></p>
    <pre class="trouble">${letter.reason}</pre>
    <div class="buttons">
      <${Deed} label="Redrive" name="redrive" kind="primary" disabled=${locked || !letter.complete} title="Back into its mailbox" path="/api/letters/redrive" body=${{ letters: [id] }} after=${close} done="It is back in its mailbox." />
      <${Deed} label="Drop" name="drop" kind="danger" disabled=${locked} path="/api/letters/drop" body=${{ letters: [id] }} after=${close} done="Dropped." confirm="Erase this letter for good?" />
    </div>
    ${error && html`<p class="error">${error.message}</p>`}
    ${value?.last_error && html`<h3>Last error</h3><pre class="data">${value.last_error}</pre>`}
    ${value && html`<h3>Message</h3><pre class="data">${asJson(value.message ?? value.message_base64)}</pre>`}
    <${Command} text=${`squadron dlq show ${letter.id}`} />
  </${Drawer}>`;
}

function asJson(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

export function Letters({ id, locked, close }) {
  const rows = useSection("letters");
  const words = parsed().query.get("q") ?? "";
  const found = useMemo(() => Object.entries(rows).filter(([, each]) => fits(words, each.topic, each.agent, each.id, each.reason)), [rows, words]);
  const row = ([, each]) => html`<span class="clip"><b>${each.topic || "?"}</b></span><span class="clip opt">${each.agent}</span><span class="clip dim">${each.reason}</span><span class="right opt">${each.attempts}</span><span class="right dim">${ago(each.buried_at)}</span>`;
  return html`<div class="page letters"><div class="list"><div class="bar"><${Search} placeholder="Find dead letters" /><span class="dim">${counted(found.length, "letter")}</span>
      ${found.length > 0 && html`<${Deed} label=${`Redrive ${found.length === 1 ? "it" : `these ${found.length}`}`} name="redrive-all" kind="right" disabled=${locked} path="/api/letters/redrive" body=${{ letters: found.map(([key]) => key) }}
        confirm=${`Put ${counted(found.length, "message")} back into their mailboxes?`} done=${(answer) => `${answer.redriven.length} are back in their mailboxes.`} />`}</div>
    ${found.length ? html`<${Rows} items=${found} keyOf=${([key]) => key} row=${row} label="Dead letters" selected=${id} onOpen=${([key]) => go("letters", key)}
      head=${html`<span>Topic</span><span class="opt">Agent</span><span>Why</span><span class="right opt">Attempts</span><span class="right">When</span>`} />`
      : html`<${Empty} title="No dead letters">What was given up lies here, and can be put back.</${Empty}>`}</div>
    ${rows[id] && html`<${Letter} key=${id} id=${id} letter=${rows[id]} locked=${locked} close=${close} />`}</div>`;
}

// --- lite topics --------------------------------------------------------------------------------------------

function Stream({ id, locked, close }) {
  const [messages, setMessages] = useState([]);
  const [end, setEnd] = useState("");
  const [text, setText] = useState("");
  const [owner, ...rest] = id.split("/");
  const name = rest.join("/");
  const url = `/api/lite/${path(owner, name)}`;
  useEffect(() => {
    const source = new EventSource(`${url}/follow`);
    source.addEventListener("message", (event) => setMessages((now) => [...now.slice(-999), JSON.parse(event.data)]));
    source.addEventListener("end", (event) => { setEnd(JSON.parse(event.data).reason); source.close(); });
    source.addEventListener("trouble", (event) => { complain(JSON.parse(event.data)); source.close(); });
    source.addEventListener("open", () => setMessages([]));
    return () => source.close();
  }, [id]);
  async function publish(event) {
    event.preventDefault();
    let content = text;
    try { content = JSON.parse(text); } catch { /* then it is text */ }
    try { await post(`${url}/publish`, { content }); setText(""); } catch (error) { complain(error); }
  }
  return html`<${Drawer} title=${id} onClose=${close}>
    <p class="line"><${Badge} word=${end || "live"} tone=${end ? "calm" : "good"} /> <span class="dim">${counted(messages.length, "message")}</span>
      <${Deed} label="Close it" name="close" kind="danger right" disabled=${locked || Boolean(end)} path=${`${url}/close`} confirm="End this topic, with all its messages?" done="It is closed." /></p>
    <ol class="stream" aria-live="polite">${messages.map((each) => html`<li key=${each.seq}><span class="dim">${clock(each.time)} ${each.from}</span><pre>${pretty(each.content)}</pre></li>`)}</ol>
    ${!end && html`<form class="say" onSubmit=${publish}><input aria-label="Publish" placeholder='{"text": "hello"} or text' value=${text} onInput=${(e) => setText(e.target.value)} disabled=${locked} /><button class="primary" disabled=${locked || !text}>Publish</button></form>`}
    <${Command} text=${`squadron lite read ${id} --follow`} />
  </${Drawer}>`;
}

export function Lite({ id, locked, close }) {
  const rows = useSection("lite");
  const words = parsed().query.get("q") ?? "";
  const found = useMemo(() => Object.values(rows).filter((each) => fits(words, each.owner, each.id)).sort((a, b) => b.time - a.time), [rows, words]);
  const row = (each) => html`<span class="clip"><b>${each.owner}</b><span class="dim">/</span>${each.id}</span><span class="opt"><${Badge} word=${each.ended || each.kind} tone="calm" /></span><span class="right opt">${bytes(each.bytes)}</span><span class="right dim opt">${each.ends_at ? `in ${seconds(Math.max(0, each.ends_at - Date.now() / 1000))}` : "–"}</span><span class="right dim">${ago(each.time)}</span>`;
  return html`<div class="page lite"><div class="list"><div class="bar"><${Search} placeholder="Find lite topics, or OWNER/ID" /><span class="dim">${counted(found.length, "topic")}</span>
      ${/^[\w-]+\/[\w-]+$/.test(words) && !rows[words] && html`<button type="button" onClick=${() => go("lite", words)}>Open ${words}</button>`}</div>
    ${found.length ? html`<${Rows} items=${found} keyOf=${(each) => `${each.owner}/${each.id}`} row=${row} label="Lite topics" selected=${id} onOpen=${(each) => go("lite", `${each.owner}/${each.id}`)}
      head=${html`<span>Owner / id</span><span class="opt">Last</span><span class="right opt">Size</span><span class="right opt">Ends</span><span class="right">Used</span>`} />`
      : html`<${Empty} title="No lite topics">Those with a life of their own appear here. Any other opens by its <code>OWNER/ID</code>.</${Empty}>`}</div>
    ${id.includes("/") && html`<${Stream} key=${id} id=${id} locked=${locked} close=${close} />`}</div>`;
}

// --- negotiations -------------------------------------------------------------------------------------------

export function Negotiations() {
  const rounds = Object.values(useSection("negotiations")).reverse();
  const figures = ({ agent, replica, said, ...rest }) => Object.entries(rest).filter(([name]) => !/valid/i.test(name)).map(([name, value]) => `${name} ${value}`).join(" · ");
  return html`<div class="page single"><div class="scroll">${rounds.length ? rounds.map((each) => html`<section class="card" key=${each.id}>
      <p class="line"><b>${[...new Set(each.topics)].join(", ")}</b> ${each.outcome ? html`<${Badge} word=${each.outcome} />` : each.task ? html`<${Badge} word="running" />` : html`<${Badge} word="bids" tone="busy" />`}
        <span class="dim right">${clock(each.at)} · called by ${each.caller}</span></p>
      <table><thead><tr><th>Agent</th><th>Bid</th><th></th></tr></thead><tbody>
      ${[...new Set(each.called)].map((agent) => {
        const bid = each.bids.find((one) => one.agent === agent);
        return html`<tr key=${agent}><td>${agent}</td><td class=${bid?.confidence === undefined ? "dim" : ""}>${bid ? bid.said || figures(bid) : "no answer yet"}</td><td>${each.awarded === agent && html`<span class="tag good">awarded</span>`}</td></tr>`;
      })}</tbody></table></section>`)
    : html`<${Empty} title="No negotiations">Calls for bids that pass while this page is open appear here.</${Empty}>`}</div></div>`;
}

// --- events ---------------------------------------------------------------------------------------------------

export function Events({ close }) {
  const rows = useSection("events");
  const [held, setHeld] = useState(null);
  const { query, id } = parsed();
  const words = query.get("q") ?? "";
  const shown = held ?? rows;
  const found = useMemo(() => Object.entries(shown).filter(([, each]) => fits(words, each.kind, each.topic ?? "", each.agent ?? "", each.sender ?? "", each.conversation ?? "", each.id ?? "")).reverse(), [shown, words]);
  const open = shown[id];
  const row = ([, each]) => html`<span class="dim">${clock(each.at)}</span><span><${Badge} word=${each.kind} /></span><span class="clip"><b>${each.topic || ""}</b></span>
    <span class="clip opt">${each.sender_type === "client" ? "client" : each.sender_type ?? ""}${each.agent ? ` → ${each.agent}` : ""}</span><span class="clip dim">${each.outcome ? `${each.outcome} ` : ""}${each.said ?? ""}</span>`;
  return html`<div class="page events"><div class="list"><div class="bar"><${Search} placeholder="Find by kind, topic, agent, id" />
      <button type="button" aria-pressed=${held !== null} onClick=${() => setHeld(held ? null : { ...rows })}>${held ? "Go on" : "Hold"}</button><span class="dim">${counted(found.length, "message")}</span></div>
    ${found.length ? html`<${Rows} items=${found} keyOf=${([key]) => key} row=${row} height=${36} label="Events" selected=${id} onOpen=${([key]) => { setHeld(held ?? { ...rows }); go("events", key); }}
      head=${html`<span>Time</span><span>Kind</span><span>Topic</span><span class="opt">From, to</span><span>Said</span>`} />`
      : html`<${Empty} title="Nothing passes">Messages appear here as they pass.</${Empty}>`}</div>
    ${open && html`<${Drawer} title=${open.topic || open.kind} onClose=${close}><p class="line"><${Badge} word=${open.kind} /> <span class="dim">${date(open.at)} · ${bytes(open.bytes ?? 0)}</span></p>
      <dl>${["id", "parent", "conversation", "sender", "agent", "outcome", "said", "subject"].filter((name) => open[name]).map((name) => html`<dt>${name}</dt><dd><code>${open[name]}</code></dd>`)}</dl>
      ${open.content && html`<h3>Holds</h3><pre class="data">${asJson(open.content)}</pre>`}
      ${open.conversation && html`<${Command} text=${`squadron tail --conversation ${open.conversation}`} />`}</${Drawer}>`}</div>`;
}

// --- nodes ------------------------------------------------------------------------------------------------------

export function Nodes() {
  const nodes = Object.values(useSection("nodes"));
  const agents = Object.values(useSection("agents"));
  const about = useSection("about");
  const amount = (name, value) => (/memory/.test(name) ? bytes(value) : number(value));
  return html`<div class="page single"><div class="scroll">${nodes.length ? html`<div class="cards">${nodes.map((node) => {
      const here = agents.flatMap((agent) => agent.replicas.filter((each) => each.node === node.name).map((each) => each.id));
      return html`<section class="card" key=${node.id}><p class="line"><b>${node.name}</b> <${Badge} word=${node.alive ? "alive" : "dead"} tone=${node.alive ? "good" : "bad"} />${node.head && html`<span class="tag">head</span>`}<span class="dim right">${node.address}</span></p>
        ${Object.entries(node.has).map(([name, has]) => html`<div class="resource" key=${name}><span>${name.replaceAll("_", " ")}</span><${Meter} value=${has - (node.free[name] ?? (node.alive ? has : 0))} most=${has} label=${name} /><span class="right">${amount(name, has - (node.free[name] ?? has))} of ${amount(name, has)}</span></div>`)}
        <p class="dim">${counted(here.length, "replica")}${here.length ? `: ${here.slice(0, 12).join(", ")}${here.length > 12 ? "…" : ""}` : ""}</p></section>`;
    })}</div>` : html`<${Empty} title="No nodes">The bridge has not told of any.</${Empty}>`}
    ${about.dashboard && html`<p><a href=${about.dashboard} rel="noreferrer" target="_blank">Ray's dashboard</a></p>`}</div></div>`;
}
