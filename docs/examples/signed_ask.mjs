// Asks a topic with a signed task, and believes the outcome only if it is signed by an agent that is trusted: with nothing
// but a NATS client and Node's own crypto. `npm install @nats-io/transport-node`, then
//
//     SQUADRON_HOME=… NATS_CREDS=me.creds SQUADRON_TRUST=trust.json node signed_ask.mjs TOPIC '{"text": "hi"}'
//
// prints who answered, and what: {"by": "echo", "role": "agent", "outcome": {…}}.
import { createHash, createPrivateKey, createPublicKey, randomBytes, sign, verify } from "node:crypto";
import { readFileSync } from "node:fs";
import { connect, headers, nuid } from "@nats-io/transport-node";

const [topic, input] = process.argv.slice(2);
const environment = process.env.SQUADRON_ENV || "dev";
const trust = JSON.parse(readFileSync(process.env.SQUADRON_TRUST));
const [jwt, seed] = [...readFileSync(process.env.NATS_CREDS, "utf8").matchAll(/-\n([^-\s][\S]*)\n-/g)].map((found) => found[1]);

// A key of NATS is base32: what it is of (one byte, two of a seed), 32 bytes of Ed25519, two of a checksum.
function base32(text) {
  const bits = [...text].map((letter) => "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567".indexOf(letter).toString(2).padStart(5, "0")).join("");
  return Buffer.from(bits.match(/.{8}/g).map((byte) => parseInt(byte, 2)));
}
const der = (head, raw) => Buffer.concat([Buffer.from(head, "hex"), raw]);
const publicKey = (key) =>
  createPublicKey({ key: der("302a300506032b6570032100", base32(key).subarray(1, 33)), format: "der", type: "spki" });
const secret = createPrivateKey({ key: der("302e020100300506032b657004220420", base32(seed).subarray(2, 34)), format: "der", type: "pkcs8" });

const claims = (token) => JSON.parse(Buffer.from(token.split(".")[1], "base64url"));
const me = claims(jwt);
const signedBytes = (s, subject, data) =>
  ["AGENT-SENDER-V1", s.account, s.user, subject, s.ts, s.nonce, createHash("sha256").update(data).digest("hex"), ""].join("\n");

function signed(subject, data, id) {
  const s = { v: 1, account: me.nats.issuer_account, user: me.sub, name: me.name, sub: subject };
  Object.assign(s, { ts: new Date().toISOString(), nonce: randomBytes(15).toString("base64url") });
  s.sig = sign(null, Buffer.from(signedBytes(s, subject, data)), secret).toString("base64url");
  const made = headers();
  made.set("Agent-Sender", JSON.stringify(s));
  if (id) made.set("Nats-Msg-Id", id);
  return { headers: made };
}

// Who signed a message, or an error: the signature, then the JWT of the key, then who vouches for that.
async function whoSigned(message) {
  const [value, more] = message.headers?.values("Agent-Sender") ?? [];
  if (!value || more) throw new Error("it is not signed, or twice");
  const s = JSON.parse(value);
  if (s.v !== 1 || s.sub !== message.subject) throw new Error(`it is signed for ${s.sub}`);
  if (Math.abs(Date.now() - Date.parse(s.ts)) > 300_000) throw new Error("it was signed at another time");
  const right = verify(null, Buffer.from(signedBytes(s, s.sub, message.data)), publicKey(s.user), Buffer.from(s.sig, "base64url"));
  if (!right) throw new Error("it is not as it was signed");
  const stored = await client.request(`$JS.API.DIRECT.GET.squadron-${environment}-registry.agents.${environment}.registry.key.${s.user}`);
  const token = stored.string();
  const says = claims(token);
  const at = token.lastIndexOf(".");
  const vouched = verify(null, Buffer.from(token.slice(0, at)), publicKey(says.iss), Buffer.from(token.slice(at + 1), "base64url"));
  const role = Object.keys(trust.roles).find((role) => trust.roles[role].includes(says.iss));
  if (!vouched || !role || says.sub !== s.user || says.nats.issuer_account !== trust.account) throw new Error("nobody vouches for it");
  if ((says.exp && says.exp * 1000 < Date.now()) || trust.revoked?.[s.user]) throw new Error("its credential has ended");
  return { by: says.name, role };
}

const { url, token } = JSON.parse(readFileSync(`${process.env.SQUADRON_HOME}/nats/endpoint.json`));
const client = await connect({ servers: url, token });
const publish = (subject, data, id) => client.request(subject, data, signed(subject, data, id)); // a stream answers
await publish(`agents.${environment}.registry.key.${me.sub}`, jwt); // so that others can look up who signs here

const id = nuid.next();
const source = `${me.name}-${randomBytes(4).toString("hex")}`;
const replyTo = `agents.${environment}.lite.${source}-asks.${id}`;
const answers = client.subscribe(replyTo);
const task = JSON.stringify({
  ...{ id, timestamp: Date.now() / 1000, version: "1.0", type: "task", source: { id: source, type: "agent" }, replyTo },
  ...{ context: { conversationId: id, metadata: {} }, payload: { content: JSON.parse(input) }, routing: { priority: 5 } },
});
const digest = createHash("sha256").update(task).digest("hex");
await publish(`agents.${environment}.task.${topic}`, task, id);
for await (const message of answers) {
  const { type, source: from, payload, metadata } = message.json();
  if (type !== "result") continue; // chunks
  try {
    const who = await whoSigned(message);
    if (who.role !== "agent" || !from.id.startsWith(who.by)) throw new Error(`${who.by} may not answer`);
    if (metadata?.answers?.sha256 !== digest) throw new Error("it answers another task");
    console.log(JSON.stringify({ ...who, outcome: payload.content }));
    break;
  } catch (error) {
    console.error(`passed over: ${error.message}`);
  }
}
await client.close();
