// The chat: one conversation, streamed as server-sent events over fetch; text only ever becomes text nodes.
const at = (id) => document.getElementById(id);

export class Chat {
  constructor(headers) {
    this.headers = headers;
    this.messages = [];
    this.under = null;
    at("ask").addEventListener("submit", (event) => { event.preventDefault(); this.under ? this.stop() : this.send(); });
    at("clear").addEventListener("click", () => this.clear());
    at("text").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); if (!this.under) this.send(); }
    });
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") this.stop(); });
  }

  clear() {
    this.stop();
    this.messages = [];
    at("talk").replaceChildren();
    at("text").focus();
  }

  stop() { this.under?.abort(); }

  say(role, text) {
    const box = document.createElement("div");
    box.className = `said ${role}`;
    box.append(document.createTextNode(text));
    at("talk").append(box);
    this.scroll();
    return box;
  }

  scroll() { at("talk").scrollTop = at("talk").scrollHeight; }

  async send() {
    const text = at("text").value.trim();
    if (!text) return;
    at("text").value = "";
    this.say("user", text);
    this.messages.push({ role: "user", content: text });
    const box = this.say("assistant open", "");
    const under = this.under = new AbortController();
    at("send").textContent = "Stop";
    const answer = { text: "", begun: performance.now(), first: null, tokens: 0 };
    try {
      await this.stream(answer, box.firstChild, under.signal);
    } catch (error) {
      if (error.name !== "AbortError") { box.classList.add("wrong"); box.firstChild.data += (answer.text ? "\n" : "") + error.message; }
    }
    box.classList.remove("open");
    if (this.under === under) { this.under = null; at("send").textContent = "Send"; }
    if (answer.text) { this.messages.push({ role: "assistant", content: answer.text }); box.append(this.note(answer)); } else this.messages.pop();
    this.scroll();
  }

  note(answer) {
    const small = document.createElement("small");
    const first = answer.first - answer.begun, rest = (performance.now() - answer.first) / 1000;
    const rate = answer.tokens > 1 && rest > 0 ? `, ${((answer.tokens - 1) / rest).toFixed(1)} tokens/s` : "";
    small.textContent = `first token after ${first.toFixed(0)} ms, ${answer.tokens} tokens${rate}`;
    return small;
  }

  async stream(answer, node, signal) {
    const body = {
      model: at("model").value, messages: this.messages, stream: true, stream_options: { include_usage: true },
      temperature: Number(at("temperature").value), max_tokens: Number(at("tokens").value),
    };
    const reply = await fetch("/v1/chat/completions", {
      method: "POST", headers: { "Content-Type": "application/json", ...this.headers() }, body: JSON.stringify(body), signal,
    });
    if (!reply.ok) throw new Error((await reply.json().catch(() => null))?.error?.message ?? `status ${reply.status}`);
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let pending = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const frames = (pending + value).split("\n\n");
      pending = frames.pop();
      for (const frame of frames) this.take(frame, answer, node);
    }
  }

  take(frame, answer, node) {
    if (!frame.startsWith("data: ") || frame === "data: [DONE]") return;
    const event = JSON.parse(frame.slice(6));
    if (event.error) throw new Error(event.error.message);
    if (event.usage) answer.tokens = event.usage.completion_tokens;
    const piece = event.choices?.[0]?.delta?.content;
    if (!piece) return;
    answer.first ??= performance.now();
    answer.text += piece;
    node.data = answer.text;
    this.scroll();
  }
}
