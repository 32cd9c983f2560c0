// A conversation with the official JavaScript voice client, with its default model: it is greeted, then two turns,
// the answer to the first interrupted by speaking.
//   node talk.mjs ws://127.0.0.1:8080/v1/realtime question.pcm [key]
// As in a browser, with a client secret: node --conditions=browser --experimental-websocket talk.mjs ...
// Prints what happened as one line of JSON.
import { readFileSync } from "node:fs";
import { RealtimeAgent, RealtimeSession } from "@openai/agents-realtime";

const [url, file, apiKey = "any"] = process.argv.slice(2);
const question = readFileSync(file); // 24 kHz PCM
const kinds = [];
const errors = [];
let audioBytes = 0;
let interruptions = 0;

const agent = new RealtimeAgent({ name: "friend", instructions: "Be kind." });
const session = new RealtimeSession(agent, { transport: "websocket" });
session.on("audio", (event) => (audioBytes += event.data.byteLength));
session.on("audio_interrupted", () => interruptions++);
session.on("error", (event) => errors.push(JSON.stringify(event.error ?? event)));
session.transport.on("*", (event) => kinds.push(event.type));

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

async function until(isSo, what) {
  for (let waited = 0; !isSo(); waited += 20) {
    if (waited > 150000) throw new Error(`waited in vain for ${what}; ${kinds.join(" ")}`);
    await sleep(20);
  }
}

async function say(bytes) {
  for (let place = 0; place < bytes.length; place += 4800) {
    const piece = bytes.subarray(place, place + 4800);
    session.sendAudio(piece.buffer.slice(piece.byteOffset, piece.byteOffset + piece.byteLength));
    await sleep(1);
  }
}

const count = (kind) => kinds.filter((one) => one === kind).length;
const silence = Buffer.alloc(48000);

await session.connect({ apiKey, url });
session.transport.requestResponse();
await until(() => count("response.done") === 1, "the greeting");
const greeting = audioBytes;
await say(question); // while the greeting is still being played
await until(() => count("conversation.item.truncated") === 1, "the end of the greeting");
await say(silence);
await until(() => audioBytes > greeting, "the first sound of an answer");
const firstAudio = audioBytes - greeting;
await say(question); // while the first answer is still being played
await until(() => count("conversation.item.truncated") === 2, "the truncation");
await say(silence);
await until(() => count("response.done") === 3, "the second answer");
await until(() => count("conversation.item.retrieved") >= 4, "the history");
await sleep(200);
const history = session.history.map((item) => ({
  role: item.role,
  status: item.status,
  content: (item.content ?? []).map((part) => part.type),
  words: (item.content ?? []).map((part) => part.transcript ?? part.text ?? ""),
}));
console.log(JSON.stringify({ kinds, errors, greeting, firstAudio, audioBytes, interruptions, history }));
session.close();
process.exit(0);
