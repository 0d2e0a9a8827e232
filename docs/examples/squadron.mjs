// Asks, follows, serves, finds topics and uses lite topics: with nothing but a NATS client, typed and checked by `tsc`.
// Copy it, `npm install @nats-io/transport-node`, and import `Squadron`, or use it as a command:
//
//     SQUADRON_HOME=… node squadron.mjs topics                          what is served, a line for each topic
//                     node squadron.mjs ask TOPIC '{"text": "hi"}'      chunks and questions, then the outcome
//                     node squadron.mjs follow TASK                     the same of a task that another process asked
//                     node squadron.mjs cancel TASK
//                     node squadron.mjs publish OWNER.ID '{"text": "hi"}'
//                     node squadron.mjs read OWNER.ID                   a lite topic, from its first entry and then live
//                     node squadron.mjs serve                           serves `js.reverse`, until it is stopped
//
// The types are made of the schemas: npx json-schema-to-typescript docs/schema/NAME.json > types/NAME.d.ts
// @ts-check
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { connect, createInbox, headers, nuid } from "@nats-io/transport-node";

/** @typedef {import("./types/agent-message.js").AgentMessage} AgentMessage */
/** @typedef {import("./types/agent-card.js").AgentCard} AgentCard */
/** @typedef {import("./types/agent-card.js").SemanticTopic} SemanticTopic */
/** @typedef {import("./types/outcome.js").Outcome} Outcome */
/** @typedef {import("@nats-io/transport-node").NatsConnection} NatsConnection */
/** @typedef {import("@nats-io/transport-node").Msg} Msg */
/** @typedef {{ query: string, message: string, schema: { properties?: Record<string, unknown> } }} Question */
/** @typedef {{ chunk: unknown } | { restarted: number } | { question: Question } | { outcome: Outcome }} TaskEvent */
/** @typedef {{ withinS?: number, id?: string, conversationId?: string }} AskOptions */
/** @typedef {(input: any, emit: (chunk: unknown) => Promise<void>) => Promise<unknown>} Handler */

const seconds = () => Date.now() / 1000;

/** @param {Record<string, string>} fields */
function headersOf(fields) {
  const made = headers();
  for (const [name, value] of Object.entries(fields)) made.set(name, value);
  return made;
}

export class Squadron {
  /** @param {NatsConnection} client @param {string} environment @param {string} name */
  constructor(client, environment, name) {
    this.client = client;
    this.name = name; // of all processes of this program: one takes up what another has asked
    this.id = `${name}-${[...crypto.getRandomValues(new Uint8Array(4))].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
    this.root = `agents.${environment}`;
    this.streams = `squadron-${environment}`;
  }

  /** @param {{ home?: string, environment?: string, name?: string }} [options] */
  static async connect({ home = process.env.SQUADRON_HOME, environment = process.env.SQUADRON_ENV || "dev", name = "js" } = {}) {
    const { url, token } = JSON.parse(readFileSync(`${home}/nats/endpoint.json`, "utf8"));
    return new Squadron(await connect({ servers: url, token }), environment, name);
  }

  // --- asking -------------------------------------------------------------------------------------------------------

  /** Send a task; it is stored when this returns. @param {string} topic @param {unknown} content @param {AskOptions} [options] */
  async submit(topic, content, { withinS = 60, id = nuid.next(), conversationId = id } = {}) {
    const task = this.#message("task", { content, constraints: { deadline: Date.now() + 1000 * withinS } }, {
      id, conversationId, replyTo: `${this.root}.lite.${this.name}.${id}`, routing: { timeout: 1000 * withinS },
    });
    await this.#store(`${this.root}.task.${topic}`, task, { "Nats-Msg-Id": id });
    return id;
  }

  /** What a task tells, from its beginning to its outcome, whoever asked it and whoever has followed it so far.
   * @param {string} id @param {{ withinS?: number }} [options] @returns {AsyncGenerator<TaskEvent>} */
  async *follow(id, { withinS = 60 } = {}) {
    /** @type {string[]} */
    const asked = [];
    const seen = new Set();
    const questions = this.client.subscribe(`${this.root}.event.people.asked`, {
      callback: (_, message) => {
        const { about, query } = /** @type {any} */ (message.json()).payload.content;
        if (about === id) asked.push(query);
      },
    });
    let [epoch, next] = [0, 0];
    /** @type {unknown[]} */
    let early = [];
    try {
      await this.client.flush(); // from here on it is told of questions
      asked.push(...(await this.#waiting(id)));
      for await (const message of this.#entries(`${this.name}.${id}`, { until: Date.now() + 1000 * withinS, idleMs: 200 })) {
        for (const query of asked.splice(0)) {
          if (seen.has(query)) continue; // it is told at least once
          seen.add(query);
          yield { question: await this.#question(query) };
        }
        if (message === null) continue; // nothing came for a while
        const { type, payload } = /** @type {{ type: string, payload: any }} */ (message.json());
        if (type === "result") return yield { outcome: payload.content };
        if (type !== "stream" || payload.epoch < epoch) continue;
        if (payload.epoch > epoch) {
          if (epoch) yield { restarted: payload.attempt }; // another attempt: what the one before emitted is void
          [epoch, next, early] = [payload.epoch, 0, []];
        }
        if (!("chunk" in payload)) continue;
        early[payload.sequenceNumber] = { chunk: payload.chunk }; // one may be stored behind a later one
        for (; early[next]; next++) yield /** @type {TaskEvent} */ (early[next]);
      }
    } finally {
      questions.unsubscribe();
    }
    yield { outcome: { success: false, outcome: "timed_out", error: { message: `no outcome within ${withinS} s` } } };
  }

  /** Ask, and hear all that comes of it. @param {string} topic @param {unknown} content @param {AskOptions} [options] */
  async *ask(topic, content, options = {}) {
    yield* this.follow(await this.submit(topic, content, options), options);
  }

  /** Ask a task to stop, whether it waits or runs. @param {string} id @param {number} [withinS] */
  async cancel(id, withinS = 60) {
    const note = { until: seconds() + withinS, by: this.id };
    await this.#store(`${this.root}.lite.cancel.${id}`, note, { "Nats-TTL": `${withinS + 60}s` });
  }

  /** Answer a question of a task. @param {string} query @param {Record<string, unknown>} content */
  async answer(query, content) {
    const answer = this.#message("result", { content: { action: "accept", content, by: this.name } }, { correlationId: query });
    await this.#store(`${this.root}.lite.people.${query}`, answer, { "Nats-Msg-Id": `${query}.answer`, "Nats-TTL": "86400s" });
  }

  // --- finding ------------------------------------------------------------------------------------------------------

  /** What is served now, with what it takes. @returns {Promise<Array<SemanticTopic & { agent: string }>>} */
  async topics() {
    const [cards, presences] = await Promise.all([this.#latest("card.*"), this.#latest("presence.*.*")]);
    const present = new Set();
    for (const { subject, message } of presences) {
      if (/** @type {any} */ (message.json()).expires_at > 0) present.add(subject.split(".")[4]);
    }
    return cards
      .filter(({ message }) => message.data.length > 0)
      .map(({ message }) => /** @type {AgentCard} */ (message.json()))
      .filter((card) => present.has(card.agent))
      .flatMap((card) => (card.topics ?? []).map((/** @type {SemanticTopic} */ topic) => ({ ...topic, agent: card.agent })));
  }

  // --- serving ------------------------------------------------------------------------------------------------------

  /** Serve the topics of a card until the signal. A task is settled when its outcome is stored: if this process dies before, another has it.
   * @param {AgentCard} card @param {Record<string, Handler>} handlers by topic @param {AbortSignal} signal */
  async serve(card, handlers, signal) {
    const [stream, consumer] = [`${this.streams}-tasks`, card.agent];
    const filters = Object.keys(handlers).map((topic) => `${this.root}.task.${topic}`);
    const config = { durable_name: consumer, ack_policy: "explicit", ack_wait: 30e9, filter_subjects: filters };
    await this.#api(`CONSUMER.CREATE.${stream}.${consumer}`, { stream_name: stream, config });
    await this.#store(`${this.root}.registry.card.${card.agent}`, card);
    const presence = `${this.root}.registry.presence.${card.agent}.${this.id}`;
    const renew = () => this.#store(presence, { expires_at: seconds() + 15 }, { "Nats-TTL": "15s" }).catch(() => {});
    await renew();
    const beating = setInterval(renew, 5000);
    while (!signal.aborted) {
      // One task at a time; the server answers within the second, be it that there is none. Not by `request`, which knows
      // an answer by its subject: a delivery has that of its task.
      const inbox = createInbox();
      const answers = this.client.subscribe(inbox, { max: 1, timeout: 5000 });
      this.client.publish(`$JS.API.CONSUMER.MSG.NEXT.${stream}.${consumer}`, JSON.stringify({ batch: 1, expires: 1e9 }), { reply: inbox });
      for await (const delivery of answers) if (delivery.reply?.startsWith("$JS.ACK")) await this.#run(delivery, handlers);
    }
    clearInterval(beating);
    await this.#store(presence, { expires_at: 0 });
  }

  /** @param {Msg} delivery @param {Record<string, Handler>} handlers */
  async #run(delivery, handlers) {
    const task = /** @type {AgentMessage} */ (delivery.json());
    const [, , , domain, specificity] = delivery.subject.split(".");
    const attempt = Number(delivery.reply?.split(".").at(-5));
    const alive = setInterval(() => this.client.publish(delivery.reply ?? "", "+WPI"), 10_000);
    const replyTo = task.replyTo ?? `${this.root}.lite.outcome.${task.id}`;
    const run = nuid.next();
    let count = 0;
    /** @param {unknown} chunk */
    const emit = async (chunk) => {
      const payload = { sequenceNumber: count, isFirst: count === 0, isFinal: false, chunk, attempt, epoch: attempt, run };
      const id = `${run}.${count++}`;
      await this.#store(replyTo, this.#message("stream", payload, { id, correlationId: task.id }), { "Nats-Msg-Id": id, "Nats-TTL": "3600s" });
    };
    /** @type {Outcome} */
    let outcome;
    try {
      const data = await handlers[`${domain}.${specificity}`](task.payload.content, emit);
      outcome = { success: true, outcome: "result", data: /** @type {any} */ (data), attempt };
    } catch (error) {
      outcome = { success: false, outcome: "failed", error: { message: error instanceof Error ? error.message : String(error) }, attempt };
    }
    clearInterval(alive);
    if (count) {
      // How many there were, so that a reader knows whether it has them all.
      const payload = { sequenceNumber: count, isFirst: false, isFinal: true, count, end: outcome.outcome, attempt, epoch: attempt, run };
      await this.#store(replyTo, this.#message("stream", payload, { correlationId: task.id }), { "Nats-TTL": "3600s" });
    }
    const result = this.#message("result", { content: outcome }, { correlationId: task.id, conversationId: task.context.conversationId });
    await this.#store(replyTo, result, { "Nats-Msg-Id": `${task.id}.outcome`, "Nats-TTL": "3600s" });
    this.client.publish(delivery.reply ?? "", "+ACK");
  }

  // --- lite topics --------------------------------------------------------------------------------------------------

  /** Publish on a lite topic, which is there from its first message on. @param {string} topic @param {unknown} content @param {number} [ttlS] */
  async publish(topic, content, ttlS = 3600) {
    const event = this.#message("event", { content }, { conversationId: topic });
    await this.#store(`${this.root}.lite.${topic}`, event, { "Nats-Msg-Id": event.id, "Nats-TTL": `${ttlS}s` });
  }

  /** All messages of a lite topic, from the first to its end. @param {string} topic @returns {AsyncGenerator<AgentMessage>} */
  async *read(topic) {
    for await (const message of this.#entries(topic)) if (message) yield /** @type {AgentMessage} */ (message.json());
  }

  /** Each entry once and in order: from the store, then live, and from the store where something was missed. Null now and then.
   * @param {string} topic @param {{ until?: number, idleMs?: number }} [options] @returns {AsyncGenerator<Msg | null>} */
  async *#entries(topic, { until = Infinity, idleMs = 0 } = {}) {
    const subject = `${this.root}.lite.${topic}`;
    /** @type {Msg[]} */
    const heard = [];
    let wake = () => {};
    const live = this.client.subscribe(`${this.root}.live.${topic}`, { callback: (_, message) => (heard.push(message), wake()) });
    try {
      await this.client.flush(); // only then the first look: between the two nothing can be missed
      for (let [last, lookAt] = [0, 0]; Date.now() < until; ) {
        if (Date.now() >= lookAt) {
          for await (const { seq, message } of this.#stored(`${this.streams}-lite`, { seq: last + 1, next_by_subj: subject })) {
            if (message.headers?.has("Squadron-End")) return;
            last = seq;
            yield message;
          }
          lookAt = Date.now() + 5000; // again, as the connection may be away meanwhile
        }
        const message = heard.shift();
        if (!message) {
          const waitMs = Math.max(0, Math.min(idleMs || Infinity, lookAt - Date.now(), until - Date.now()));
          await new Promise((resolve) => {
            const timer = setTimeout(resolve, waitMs);
            wake = () => (clearTimeout(timer), resolve(null));
          });
          yield null;
          continue;
        }
        const [seq, before] = ["Nats-Sequence", "Nats-Last-Sequence"].map((name) => Number(message.headers?.get(name)));
        if (!(seq > last)) continue; // had it from the store
        if (before > last) lookAt = 0;
        else if (message.headers?.has("Squadron-End")) return;
        else yield ((last = seq), message);
      }
    } finally {
      live.unsubscribe();
    }
  }

  // --- what all of them stand on ------------------------------------------------------------------------------------

  /** What is stored, a batch at a time (direct get). @param {string} stream @param {Record<string, unknown>} wanted */
  async *#stored(stream, wanted) {
    for (let [more, seq] = [true, Number(wanted.seq ?? 1)]; more; ) {
      const inbox = createInbox();
      const answers = this.client.subscribe(inbox, { timeout: 5000 });
      this.client.publish(`$JS.API.DIRECT.GET.${stream}`, JSON.stringify({ batch: 256, ...wanted, seq }), { reply: inbox });
      more = false;
      try {
        for await (const message of answers) {
          if (!message.headers?.has("Nats-Sequence")) break; // a status ends it
          seq = Number(message.headers.get("Nats-Sequence")) + 1;
          more = message.headers.get("Nats-Num-Pending") !== "0";
          yield { seq: seq - 1, subject: message.headers.get("Nats-Subject") ?? "", message };
        }
      } finally {
        answers.unsubscribe();
      }
    }
  }

  /** The newest entry of each key of the registry. @param {string} pattern */
  async #latest(pattern) {
    const newest = new Map();
    const subject = `${this.root}.registry.${pattern}`;
    for await (const each of this.#stored(`${this.streams}-registry`, { seq: 1, next_by_subj: subject })) newest.set(each.subject, each);
    return [...newest.values()];
  }

  /** The questions of a task that wait for an answer. @param {string} task */
  async #waiting(task) {
    const found = new Set();
    for await (const { message } of this.#stored(`${this.streams}-lite`, { seq: 1, next_by_subj: `${this.root}.lite.people.*` })) {
      if (message.headers?.has("Squadron-End")) continue;
      const { type, id, correlationId } = /** @type {AgentMessage} */ (message.json());
      if (type === "query" && correlationId === task) found.add(id);
      if (type === "result") found.delete(correlationId);
    }
    return found;
  }

  /** @param {string} query @returns {Promise<Question>} */
  async #question(query) {
    for await (const { message } of this.#stored(`${this.streams}-lite`, { seq: 1, next_by_subj: `${this.root}.lite.people.${query}` })) {
      const { message: text, schema } = /** @type {any} */ (message.json()).payload.content;
      return { query, message: text, schema };
    }
    throw new Error(`there is no question ${query}`);
  }

  /** Publish into a stream; it is stored when this returns. @param {string} subject @param {unknown} value @param {Record<string, string>} [fields] */
  async #store(subject, value, fields = {}) {
    const ack = await this.client.request(subject, JSON.stringify(value), { timeout: 5000, headers: headersOf(fields) });
    const { error } = /** @type {any} */ (ack.json());
    if (error) throw new Error(error.description);
  }

  /** @param {string} call @param {unknown} body */
  async #api(call, body) {
    const answer = /** @type {any} */ ((await this.client.request(`$JS.API.${call}`, JSON.stringify(body), { timeout: 5000 })).json());
    if (answer.error) throw new Error(answer.error.description);
    return answer;
  }

  /** @param {AgentMessage["type"]} type @param {any} payload
   * @param {{ id?: string, conversationId?: string, replyTo?: string, correlationId?: string, routing?: AgentMessage["routing"] }} head @returns {AgentMessage} */
  #message(type, payload, { id = nuid.next(), conversationId = id, ...head }) {
    const source = { id: this.id, type: "script" };
    return { id, timestamp: seconds(), version: "1.0", type, source, context: { conversationId }, payload, ...head };
  }
}

/** @type {AgentCard} */
const CARD = {
  agent: "js-reverser",
  description: "Turns texts around.",
  topics: [
    {
      name: "js.reverse",
      description: "Turn a text around, a letter a chunk.",
      input_schema: { type: "object", properties: { text: { type: "string" } }, required: ["text"] },
    },
  ],
};

/** @type {Record<string, (squadron: Squadron, ...given: string[]) => Promise<void>>} */
const COMMANDS = {
  async topics(squadron) {
    for (const { name, agent, description } of await squadron.topics()) say({ name, agent, description });
  },
  async ask(squadron, topic, input, id = nuid.next()) {
    await squadron.submit(topic, JSON.parse(input), { id });
    say({ task: id });
    await COMMANDS.follow(squadron, id);
  },
  async follow(squadron, id) {
    for await (const event of squadron.follow(id)) {
      say(event);
      // The first word on standard input is the answer to what it asks.
      if ("question" in event) {
        const [field] = Object.keys(event.question.schema.properties ?? {});
        await squadron.answer(event.question.query, { [field]: await firstLine() });
      }
    }
  },
  cancel: (squadron, id) => squadron.cancel(id),
  publish: (squadron, topic, content) => squadron.publish(topic, JSON.parse(content)),
  async read(squadron, topic) {
    for await (const message of squadron.read(topic)) say(message.payload.content);
  },
  async serve(squadron) {
    const stop = new AbortController();
    for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => stop.abort());
    /** @type {Handler} */
    const reverse = async ({ text }, emit) => {
      if (!text) throw new Error("there is nothing to turn around");
      const letters = [...text].reverse();
      for (const letter of letters) await emit(letter);
      return letters.join("");
    };
    await squadron.serve(CARD, { "js.reverse": reverse }, stop.signal);
  },
};

/** @param {unknown} value */
const say = (value) => console.log(JSON.stringify(value));

async function firstLine() {
  for await (const data of process.stdin) return String(data).split("\n")[0];
  return "";
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [command, ...given] = process.argv.slice(2);
  const squadron = await Squadron.connect();
  await COMMANDS[command](squadron, ...given);
  await squadron.client.close();
}
