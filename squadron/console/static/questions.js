// What waits for people, and the form that answers it.
import { html } from "/static/vendor/htm-preact.js";
import { path, post, useSection } from "/static/store.js";
import { Badge, Deed, Empty, ago, complain, pretty, say, seconds } from "/static/parts.js";
import { SchemaForm } from "/static/form.js";

export function Question({ asked, locked }) {
  const url = `/api/questions/${path(asked.query)}/answer`;
  const approval = asked.kind === "approval";
  async function submit(content) {
    await post(url, { action: "accept", content });
    say("Answered.");
  }
  return html`<section class="question" data-question=${asked.query}>
    <p class="line"><${Badge} word=${asked.kind} tone="warn" /> <span class="dim">${asked.asker} · ${ago(asked.asked_at)}${asked.deadline_ms ? ` · ${seconds(Math.max(0, asked.deadline_ms / 1000 - Date.now() / 1000))} left` : ""}</span></p>
    <p class="message">${asked.message}</p>
    ${asked.proposal && html`<pre class="data">${asked.proposal.topic} ${pretty(asked.proposal.arguments)}</pre>`}
    <${SchemaForm} schema=${asked.schema} label=${approval ? "Approve" : "Answer"} submit=${submit} disabled=${locked} idPrefix=${`q-${asked.query}`}>
      <${Deed} label="Decline" name="decline" disabled=${locked} path=${url} body=${{ action: "decline" }} done="Declined." />
    </${SchemaForm}>
  </section>`;
}

export function Questions({ locked }) {
  const waiting = Object.values(useSection("questions")).sort((a, b) => a.asked_at - b.asked_at);
  return html`<div class="page single"><div class="scroll">${waiting.length ? waiting.map((asked) => html`<${Question} key=${asked.query} asked=${asked} locked=${locked} />`)
    : html`<${Empty} title="Nobody waits for you">What agents ask people appears here, and can be answered.</${Empty}>`}</div></div>`;
}
