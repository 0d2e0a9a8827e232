// Reads a lite topic from its first entry, goes on live, and answers on another lite topic: with nothing but a NATS
// client, and no consumer on the server. `npm install @nats-io/transport-node`, then
//
//     SQUADRON_HOME=… node lite_topics.mjs OWNER.ID OWNER.ID-OF-THE-ANSWER [FROM_SEQUENCE]
//
// prints a line of JSON for each entry, {"seq": …, "text": …}. It ends with the topic, or with the task whose topic it is.
import { readFileSync } from "node:fs";
import { connect, createInbox, headers, nuid } from "@nats-io/transport-node";

const [topic, answerTo, fromSequence = "1"] = process.argv.slice(2);
const environment = process.env.SQUADRON_ENV || "dev";
const stream = `squadron-${environment}-lite`;
const subject = `agents.${environment}.lite.${topic}`;

const { url, token } = JSON.parse(readFileSync(`${process.env.SQUADRON_HOME}/nats/endpoint.json`));
const client = await connect({ servers: url, token });

// What is stored from a sequence on, a batch at a time (direct get). An answer without a body and with a status ends it.
async function* stored(from) {
  for (let more = true; more; ) {
    const inbox = createInbox();
    const answers = client.subscribe(inbox);
    const wanted = { seq: from, batch: 256, next_by_subj: subject };
    client.publish(`$JS.API.DIRECT.GET.${stream}`, JSON.stringify(wanted), { reply: inbox });
    more = false;
    for await (const message of answers) {
      if (!message.headers?.has("Nats-Sequence")) break;
      const entry = { seq: Number(message.headers.get("Nats-Sequence")), message };
      more = message.headers.get("Nats-Num-Pending") !== "0";
      from = entry.seq + 1;
      yield entry;
    }
  }
}

// Each entry once and in order. The server tells of an entry when it is stored, on `live` in the place of `lite`, with
// the sequence of the entry before it on the topic: if that is not the last one we had, the store has what is between.
async function* follow(from) {
  const live = client.subscribe(subject.replace(".lite.", ".live."));
  await client.flush(); // only then the first look: between the two nothing can be missed
  let last = from - 1;
  for await (const entry of stored(from)) yield [(last = entry.seq), entry.message];
  for await (const message of live) {
    const [seq, before] = ["Nats-Sequence", "Nats-Last-Sequence"].map((name) => Number(message.headers?.get(name)));
    if (!(seq > last)) continue; // had it from the store
    if (before > last) for await (const entry of stored(last + 1)) yield [(last = entry.seq), entry.message];
    if (seq > last) yield [(last = seq), message];
  }
}

let [texts, epoch] = [[], 0];
for await (const [seq, message] of follow(Number(fromSequence))) {
  if (message.headers?.has("Squadron-End")) break; // closed, or expired
  const { payload, type } = message.json();
  if (type === "result") break; // the outcome, on the lite topic of a task
  if (type === "stream") {
    // A task's chunk may be stored behind a later one, and a higher epoch starts the stream anew.
    if (payload.epoch < epoch || !("chunk" in payload)) continue;
    if (payload.epoch > epoch) [texts, epoch] = [[], payload.epoch];
    texts[payload.sequenceNumber] = payload.chunk;
  } else texts.push(payload.content.text);
  console.log(JSON.stringify({ seq, text: payload.chunk ?? payload.content.text }));
}

// The answer: one more lite topic, made by this publish. It is stored when the server acknowledges it; published again
// under its id within two minutes it is stored once.
const id = nuid.next();
const answer = {
  id, timestamp: Date.now() / 1000, version: "1.0", type: "event", source: { id: "node", type: "script" },
  context: { conversationId: topic }, payload: { content: { texts } },
};
const about = headers();
about.set("Nats-Msg-Id", id);
about.set("Nats-TTL", "3600s"); // its life; 30 days without
const ack = await client.request(`agents.${environment}.lite.${answerTo}`, JSON.stringify(answer), { headers: about });
if (ack.json().error) throw new Error(ack.json().error.description);
await client.close();
