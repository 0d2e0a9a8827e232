// Agents: how many of each run, how much waits, how fast it goes, and the controls.
import { html, useMemo, useState } from "/static/vendor/htm-preact.js";
import { history, known, path, useSection } from "/static/store.js";
import { Badge, Command, Deed, Dot, Drawer, Empty, Meter, Rows, Search, Spark, counted, fits, go, number, parsed, rate, seconds, useSorted } from "/static/parts.js";

const ORDERS = {
  name: (a, b) => a.agent.localeCompare(b.agent),
  replicas: (a, b) => b.running - a.running,
  busy: (a, b) => b.in_flight - a.in_flight,
  waiting: (a, b) => (b.waiting ?? 0) - (a.waiting ?? 0),
  rate: (a, b) => (b.rates[1] ?? 0) - (a.rates[1] ?? 0),
  failed: (a, b) => b.failing - a.failing || b.failed - a.failed,
  age: (a, b) => (b.age_s ?? 0) - (a.age_s ?? 0),
};

const isPinned = (scale) => !String(scale).includes("..");
const at = (agent) => (isPinned(agent.scale) ? Number(agent.scale) : agent.target);
const deed = (agent, verb) => `/api/agents/${path(agent.agent)}/${verb}`;

function Steps({ agent, locked }) {
  const now = at(agent);
  const step = (to, sign, name) => html`<${Deed} icon=${sign} name=${name} kind="step" disabled=${locked || to < 0}
    title=${`${agent.agent}: pin at ${to} replicas`} path=${deed(agent, "scale")} body=${{ to: String(to) }}
    done=${(answer) => `${agent.agent} runs at ${answer.scale}`} />`;
  return html`<span class="steps">${step(now - 1, "−", "less")}<output title="running / wanted">${agent.running}<i>/${agent.target}</i></output>${step(now + 1, "+", "more")}</span>`;
}

const ScaleWord = ({ agent }) =>
  isPinned(agent.scale) ? html`<span class="tag pin" title="Set by hand: out of the autoscaler's hands">pinned ${agent.scale}</span>`
    : html`<span class="tag" title=${`The autoscaler stays within ${agent.scale}`}>${agent.scale} auto</span>`;

// Two versions beside each other: who has which share, and how it fares.
function Versions({ agent, locked }) {
  const tried = agent.canary;
  const [weight, setWeight] = useState(String(tried.weight));
  const over = locked || tried.promoted;
  const row = (name, of, weight, outcomes) => {
    const ended = Object.values(outcomes).reduce((sum, each) => sum + each, 0);
    const failed = ["failed", "timed_out", "dead_lettered"].reduce((sum, kind) => sum + (outcomes[kind] ?? 0), 0);
    return html`<tr data-version=${name}><td>${name}</td><td><code title=${of.version}>${String(of.version).slice(0, 8)}</code></td><td class="right">${weight} %</td><td class="right">${of.running}/${of.target}</td><td class="right">${number(ended)}</td><td class="right">${ended ? `${((100 * failed) / ended).toFixed(1)} %` : "–"}</td></tr>`;
  };
  return html`<h3>Canary</h3>
    <table><thead><tr><th>Which</th><th>Version</th><th class="right">Share</th><th class="right">Replicas</th><th class="right">Ended</th><th class="right">Failed</th></tr></thead>
      <tbody>${row("stable", agent, 100 - tried.weight, tried.stable_outcomes)}${row("canary", tried, tried.weight, tried.outcomes)}</tbody></table>
    ${tried.promoted ? html`<p class="dim">Promoted: the canary goes when stable runs its code.</p>` : ""}
    <div class="control"><input aria-label="Share in percent" class="short" type="number" min="0" max="100" value=${weight} onInput=${(e) => setWeight(e.target.value)} />
      <${Deed} label="Set share" name="weight" disabled=${over} path=${deed(agent, "canary")} body=${() => ({ to: weight })} done=${`The canary of ${agent.agent} gets ${weight} %`} />
      <${Deed} label="Promote" name="promote" disabled=${over} path=${deed(agent, "canary")} body=${{ to: "promote" }} done=${`The canary of ${agent.agent} is to serve`}
        confirm=${`Have ${String(tried.version).slice(0, 8)} serve all tasks of ${agent.agent}? What serves now is replaced.`} />
      <${Deed} label="Abort" name="abort" kind="danger" disabled=${over} path=${deed(agent, "canary")} body=${{ to: "abort" }} done=${`The canary of ${agent.agent} goes`}
        confirm=${`Take the canary of ${agent.agent} away? What serves now serves on.`} /></div>
    <${Command} text=${`squadron canary ${agent.agent} --promote`} />`;
}

function Detail({ agent, locked, close }) {
  const [low, high] = String(agent.scale).includes("..") ? agent.scale.split("..") : String(agent.bounds).split("..");
  const [bounds, setBounds] = useState({ low, high: high ?? low });
  const [pin, setPin] = useState(String(at(agent)));
  const points = history(agent.agent);
  const outcomes = Object.entries(agent.outcomes ?? {});
  const scaled = (answer) => `${agent.agent} runs at ${answer.scale}`;
  return html`<${Drawer} title=${agent.agent} onClose=${close}>
    <p class="line"><${Badge} word=${agent.status} /> <${ScaleWord} agent=${agent} /> <span class="dim">version <code title=${agent.version}>${String(agent.version).slice(0, 12)}</code></span></p>
    ${agent.message && agent.status !== "RUNNING" && html`<pre class="trouble">${agent.message}</pre>`}
    <div class="figures">
      <div><b>${agent.running}/${agent.target}</b><span>replicas</span></div><div><b>${agent.in_flight}/${agent.slots}</b><span>in flight</span></div>
      <div><b>${number(agent.waiting)}</b><span>backlog</span></div><div><b>${rate(agent.rates[1])}/s</b><span>last 30 s</span></div>
      <div><b>${seconds(agent.age_s)}</b><span>queue age</span></div><div><b>${number(agent.failing)}</b><span>failed in 5 min</span></div>
    </div>
    <h3>Last ${points.length} s</h3>
    <div class="sparks"><figure><${Spark} points=${points} name="rate" /><figcaption>tasks per second</figcaption></figure>
      <figure><${Spark} points=${points} name="waiting" tone="warn" /><figcaption>backlog</figcaption></figure></div>
    <h3>Scale</h3>
    <div class="controls">
      <div class="control"><${Steps} agent=${agent} locked=${locked} />
        <input aria-label="Pin at" class="short" type="number" min="0" value=${pin} onInput=${(e) => setPin(e.target.value)} />
        <${Deed} label="Pin" name="pin" disabled=${locked} path=${deed(agent, "scale")} body=${() => ({ to: pin })} done=${scaled} /></div>
      <div class="control"><input aria-label="At least" class="short" type="number" min="0" value=${bounds.low} onInput=${(e) => setBounds({ ...bounds, low: e.target.value })} />
        <span class="dim">to</span><input aria-label="At most" class="short" type="number" min="1" value=${bounds.high} onInput=${(e) => setBounds({ ...bounds, high: e.target.value })} />
        <${Deed} label="Set bounds" name="bounds" disabled=${locked} path=${deed(agent, "scale")} body=${() => ({ to: `${bounds.low}..${bounds.high}` })} done=${scaled} />
        <${Deed} label=${`Auto (${agent.bounds})`} name="auto" disabled=${locked} path=${deed(agent, "scale")} body=${{ to: "auto" }} done=${scaled} /></div>
    </div>
    <div class="buttons">
      <${Deed} label="Drain" name="drain" disabled=${locked} title="Running turns end, none begins; what comes waits" path=${deed(agent, "drain")} done=${`${agent.agent} drains`} />
      <${Deed} label="Redeploy" name="redeploy" disabled=${locked} title="New replicas with the same code; running turns end first" path=${deed(agent, "redeploy")} done=${`${agent.agent} starts anew`} />
      <${Deed} label="Undeploy" name="undeploy" kind="danger" disabled=${locked} path=${deed(agent, "undeploy")} after=${close} done=${`${agent.agent} goes`}
        confirm=${`Take ${agent.agent} away? What waits in its mailbox is kept, but it can only come back by a deploy.`} />
    </div>
    <h3>Outcomes</h3>
    ${outcomes.length ? html`<p class="chips">${outcomes.map(([kind, count]) => html`<span key=${kind}><${Badge} word=${kind} /> ${number(count)}</span>`)}</p>` : html`<p class="dim">None yet.</p>`}
    ${agent.canary && html`<${Versions} agent=${agent} locked=${locked} />`}
    <h3>Topics</h3>
    <table><thead><tr><th>Topic</th><th class="right">/s</th><th class="right">Waits</th><th class="right">Runs</th><th class="right">Failed</th></tr></thead><tbody>
      ${(agent.serves ?? []).map((name) => {
        const told = agent.topics.find((each) => each.topic === name);
        return html`<tr key=${name}><td><a href=${`#/topics/${encodeURIComponent(name)}`}>${name}</a></td><td class="right">${rate(told?.rate)}</td><td class="right">${seconds(told?.wait_s)}</td><td class="right">${seconds(told?.run_s)}</td><td class="right">${number(told?.failed)}</td></tr>`;
      })}</tbody></table>
    <h3>Replicas</h3>
    <table><thead><tr><th>Replica</th><th>Node</th><th class="right">Busy</th><th class="right">Done</th><th class="right">Failed</th></tr></thead><tbody>
      ${agent.replicas.map((each) => html`<tr key=${each.id}><td><code>${each.id}</code></td><td>${each.node ?? "–"}</td><td class="right">${each.in_flight}/${each.slots}</td><td class="right">${number(each.done)}</td><td class="right">${number(each.failed)}</td></tr>`)}
      ${!agent.replicas.length && html`<tr><td colspan="5" class="dim">No replica runs.</td></tr>`}</tbody></table>
    <${Command} text=${`squadron scale ${agent.agent}=${agent.scale}`} />
  </${Drawer}>`;
}

export function Agents({ id, locked, close }) {
  const rows = useSection("agents");
  const words = parsed().query.get("q") ?? "";
  const found = useMemo(() => Object.values(rows).filter((each) => fits(words, each.agent, each.status, ...(each.serves ?? []))), [rows, words]);
  const [agents, Head] = useSorted(found, ORDERS, "name");
  const open = rows[id];
  const head = html`<${Head} by="name">Agent</${Head}><${Head} by="replicas">Replicas</${Head}><span class="opt">Scale</span>
    <${Head} by="busy">In flight</${Head}><${Head} by="waiting" right>Backlog</${Head}><${Head} by="rate" right>/s</${Head}>
    <${Head} by="failed" right opt>Failed</${Head}><${Head} by="age" right opt>Age</${Head}>`;
  const row = (each) => html`
    <span class="name"><${Dot} word=${each.status} /><span class="clip"><b>${each.agent}</b>${each.group && html` <small class="dim" title="Shares processes with the others of its group">in ${each.group}</small>`}</span></span>
    <${Steps} agent=${each} locked=${locked} /><span class="opt"><${ScaleWord} agent=${each} /></span>
    <span class="flight"><${Meter} value=${each.in_flight} most=${each.slots} label=${`${each.in_flight} of ${each.slots} slots`} /><small>${each.in_flight}/${each.slots}</small></span>
    <span class=${`right ${each.waiting ? "strong" : ""}`}>${number(each.waiting)}</span><span class="right">${rate(each.rates[1])}</span>
    <span class=${`right opt ${each.failing ? "red" : ""}`} title=${`${each.failing} in the last five minutes`}>${number(each.failed)}</span>
    <span class="right opt">${each.age_guessed ? "~" : ""}${seconds(each.age_s)}</span>`;
  return html`<div class="page agents"><div class="list"><div class="bar"><${Search} placeholder="Find agents" /><span class="dim">${counted(found.length, "agent")}</span></div>
    ${found.length || !known("agents") ? html`<${Rows} items=${agents} keyOf=${(each) => each.agent} row=${row} head=${head} label="Agents" height=${52} selected=${id} onOpen=${(each) => go("agents", each.agent)} />`
      : html`<${Empty} title="No agents">Deploy one: <code>squadron deploy module:Agent</code></${Empty}>`}</div>
    ${open && html`<${Detail} key=${id} agent=${open} locked=${locked} close=${close} />`}</div>`;
}
