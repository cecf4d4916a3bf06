// The npm client against a served model: node openai_client.mjs URL KEY MODEL (NODE_PATH with openai).
import { createRequire } from "node:module";
const OpenAI = createRequire(process.env.CLIENT_HOME + "/")("openai");
const [url, key, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: "Say hi." }];
const whole = await client.chat.completions.create({ model, messages, max_tokens: 12 });
if (!whole.choices[0].message.content || !whole.usage.completion_tokens) throw new Error(JSON.stringify(whole));
let text = "", usage = null;
for await (const chunk of await client.chat.completions.create({ model, messages, max_tokens: 12, stream: true, stream_options: { include_usage: true } })) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
if (!text || !usage) throw new Error("no stream");
const refused = await client.chat.completions.create({ model, messages, temperature: -1 }).catch((error) => error);
if (refused.status !== 400 || refused.param !== "temperature") throw new Error(String(refused));
const number = { type: "integer" };
const tools = [{ type: "function", function: { name: "add", parameters: { type: "object", properties: { a: number, b: number }, required: ["a", "b"] } } }];
const sum = { model, messages: [{ role: "user", content: "What is 2 + 3?" }], tools, tool_choice: "required", max_tokens: 80, temperature: 0 };
const check = (calls) => {
  const args = JSON.parse(calls?.[0]?.function?.arguments ?? "null");
  if (!calls?.length || calls[0].function.name !== "add" || !Number.isInteger(args.a + args.b)) throw new Error(JSON.stringify(calls));
};
check((await client.chat.completions.create(sum)).choices[0].message.tool_calls);
check((await client.chat.completions.stream(sum).finalChatCompletion()).choices[0].message.tool_calls);
const left = new AbortController();
const stream = await client.chat.completions.create({ model, messages, stream: true }, { signal: left.signal });
for await (const _ of stream) { left.abort(); break; }
console.log(`openai (npm): completes, streams with usage, calls a tool whole and streamed, a 400 names its field, leaves`);
