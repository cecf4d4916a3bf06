// The engine, live: asks /live twice a second, not while nobody looks.
const at = (id) => document.getElementById(id);
const EVERY_MS = 500, RATES = 60;
const seconds = (s) => (s == null ? "" : s < 1 ? `${(s * 1000).toPrecision(3)} ms` : `${s.toPrecision(3)} s`);
const percent = (share) => `${(100 * share).toFixed(share < 0.1 && share > 0 ? 1 : 0)} %`;
let rates = [], before = null;

export async function watch(headers) {
  at("model").addEventListener("change", () => { rates = []; before = null; at("verdict").textContent = at("change").textContent = ""; });
  for (;;) {
    if (!document.hidden) {
      try {
        const model = at("model").value;
        const reply = await fetch("/live" + (model ? `?model=${encodeURIComponent(model)}` : ""), { headers: headers() });
        reply.ok ? show(await reply.json(), model) : word(reply.status === 401 ? "type a key" : `status ${reply.status}`, false);
      } catch { word("no server", false); }
    }
    await new Promise((done) => setTimeout(done, EVERY_MS));
  }
}

function word(text, good) {
  at("word").textContent = text;
  at("word").className = `pill ${good ? "ok" : "wrong"}`;
}

// One model is a name, several are a choice.
function offer(now) {
  const box = at("model");
  if ([...box.options].map((one) => one.value).join("\n") === now.models.join("\n")) return;
  box.replaceChildren(...now.models.map((name) => new Option(name, name, false, name === now.model)));
  box.disabled = now.models.length < 2;
}

function show(now, asked) {
  offer(now);
  if (asked && asked !== at("model").value) return; // another was chosen meanwhile
  word(now.status, now.status === "ok");
  if (before && now.at_s > before.at_s) {
    rates.push((now.tokens - before.tokens) / (now.at_s - before.at_s));
    if (rates.length > RATES) rates.shift();
    const newest = rates.slice(-4);
    at("rate").textContent = (newest.reduce((a, b) => a + b, 0) / newest.length).toFixed(newest.at(-1) < 10 ? 1 : 0);
    const most = Math.max(...rates, 1);
    at("spark").firstElementChild.setAttribute("points", rates.map((rate, i) => `${(120 * i / (RATES - 1)).toFixed(1)},${(31 - 29 * rate / most).toFixed(1)}`).join(" "));
  }
  before = now;
  at("running").textContent = now.running;
  at("slots").textContent = now.slots;
  at("waiting").textContent = now.waiting;
  at("occupancy").value = now.slots ? now.running / now.slots : 0;
  blocks(now);
  at("count").textContent = now.latencies;
  for (const name of ["ttft", "tpot"]) [...at(name).querySelectorAll("td")].forEach((cell, i) => { cell.textContent = seconds(now[`${name}_s`][i]); });
  shares(now.phases);
  if (now.verdict) {
    at("verdict").textContent = now.verdict.words + (now.verdict.share ? ` (${percent(now.verdict.share)} of ${now.verdict.of})` : "");
    at("change").textContent = now.verdict.change ? `Try: ${now.verdict.change}` : "";
  }
}

function blocks(now) {
  const all = now.blocks || 1;
  at("blocks").textContent = now.blocks ? `${now.blocks.toLocaleString("en")} in all` : "";
  for (const name of ["held", "cached", "free"]) at(name).textContent = percent(now[name] / all);
  const map = at("map"), cells = now.map.length / 2;
  while (map.childElementCount < cells) map.append(document.createElement("i"));
  while (map.childElementCount > cells) map.lastElementChild.remove();
  for (let i = 0; i < cells; i++) {
    const held = parseInt(now.map[2 * i], 16), cached = parseInt(now.map[2 * i + 1], 16);
    const kind = held && cached ? "m" : held >= 8 ? "h" : held ? "p" : cached >= 8 ? "c" : cached ? "q" : "";
    if (map.children[i].className !== kind) map.children[i].className = kind;
  }
}

function shares(phases) {
  const names = Object.keys(phases), sum = names.reduce((a, name) => a + phases[name], 0);
  if (!sum) return;
  const bar = at("shares"), list = at("phases");
  while (bar.childElementCount < names.length) bar.append(document.createElement("div"));
  while (list.childElementCount < names.length) { const row = document.createElement("li"); row.append(document.createElement("i"), document.createElement("span")); list.append(row); }
  names.forEach((name, i) => {
    bar.children[i].className = list.children[i].firstChild.className = `s${i % 4}`;
    bar.children[i].style.width = `${100 * phases[name] / sum}%`;
    list.children[i].lastChild.textContent = `${name} ${percent(phases[name] / sum)}`;
  });
}
