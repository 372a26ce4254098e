"use strict";

const POLL_MS = 3000;
const at = (id) => document.getElementById(id);
const state = { image: null, url: "", limits: null, ticked: new Set(), known: new Set(), cards: new Map() };

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function trouble(text) {
  at("trouble").textContent = text;
  at("trouble").hidden = !text;
}

async function told(response) {
  const answer = await response.json();
  if (!response.ok) throw new Error(`${answer.error}: ${answer.cure}`);
  return answer;
}

// tasks

async function readTasks() {
  try {
    const { base, tasks, limits } = await told(await fetch("/v1/tasks"));
    state.limits = limits;
    at("base").textContent = base ? `on ${base}` : "";
    showTasks(tasks.filter((task) => task.status !== "gone"));
    if (at("trouble").dataset.of === "tasks") trouble("");
    at("trouble").dataset.of = "";
  } catch (error) {
    trouble(`The server does not answer: ${error.message}`);
    at("trouble").dataset.of = "tasks";
  }
}

function showTasks(tasks) {
  const text = JSON.stringify(tasks);
  if (at("tasks").dataset.text === text) return;
  at("tasks").dataset.text = text;
  at("tasks").replaceChildren(...(tasks.length ? tasks.map(taskRow) : [element("p", { className: "quiet", textContent: "none yet: put a delta into the folder" })]));
  const served = new Set(tasks.filter((task) => "kind" in task).map((task) => task.name));
  for (const name of state.ticked) if (!served.has(name)) state.ticked.delete(name);
  run();
}

function taskRow(task) {
  const served = "kind" in task;
  if (served && !state.known.has(task.name)) {
    state.known.add(task.name);
    if (state.ticked.size < 2) state.ticked.add(task.name);
  }
  const box = element("input", { type: "checkbox", name: task.name, checked: state.ticked.has(task.name), disabled: !served });
  box.addEventListener("change", () => {
    state.ticked[box.checked ? "add" : "delete"](task.name);
    run();
  });
  const about = served ? `${task.kind}, ${task.classes.length} classes` : `${task.status}: ${task.reason || "being read"}`;
  const row = element("label", {}, box, element("span", {}, task.name, element("small", { textContent: about })));
  if (!served) row.className = "refused";
  return row;
}

// the image

async function take(file) {
  if (!file) return;
  trouble("");
  try {
    const bitmap = await createImageBitmap(file);
    const { image, note } = await withinLimits(file, bitmap);
    at("about").textContent = `${file.name || "image"}, ${bitmap.width} × ${bitmap.height}${note}`;
    bitmap.close();
    URL.revokeObjectURL(state.url);
    state.image = image;
    state.url = URL.createObjectURL(image);
  } catch (error) {
    trouble(`“${file.name || "this"}” cannot be shown as an image: choose a JPEG, PNG, WebP or BMP file.`);
    return;
  }
  at("thumbnail").src = state.url;
  at("thumbnail").hidden = false;
  for (const card of state.cards.values()) card.node.remove();
  state.cards.clear();
  run();
}

async function withinLimits(file, bitmap) {
  const { pixels, bytes } = state.limits || { pixels: Infinity, bytes: Infinity };
  const many = bitmap.width * bitmap.height;
  if (many <= pixels && file.size <= bytes) return { image: file, note: "" };
  const scale = Math.min(1, Math.sqrt(pixels / many));
  const canvas = element("canvas", { width: Math.floor(bitmap.width * scale), height: Math.floor(bitmap.height * scale) });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const image = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
  return { image, note: `, sent as ${canvas.width} × ${canvas.height}: the server takes no more` };
}

// results

function run() {
  if (!state.image) return;
  for (const [name, card] of state.cards) {
    if (state.ticked.has(name)) continue;
    card.abort.abort();
    card.node.remove();
    state.cards.delete(name);
  }
  for (const name of [...state.ticked].sort()) {
    const card = state.cards.get(name) || newCard(name);
    if (card.asked !== key()) predict(name, card);
  }
  at("empty").hidden = state.cards.size > 0;
}

const key = () => `${state.url} ${at("score").value}`;

function newCard(name) {
  const slider = element("input", { type: "range", min: 0, max: 100, step: 0.1, value: split, ariaLabel: `Uncover the image under ${name}` });
  slider.addEventListener("input", () => setSplit(slider.value));
  const card = {
    abort: new AbortController(),
    drawn: element("img", { className: "drawn", alt: `what ${name} found`, hidden: true }),
    found: element("ul", { className: "found" }),
    time: element("span", { className: "time" }),
    slider,
  };
  const picture = element("img", { src: state.url, alt: "the image" });
  const knob = element("span", { className: "knob", textContent: "‹›", ariaHidden: "true" });
  card.view = element("div", { className: "view" }, picture, card.drawn, slider, knob);
  card.node = element("article", {}, element("div", {}, element("h2", { textContent: name }), card.time), card.view, card.found);
  card.node.dataset.task = name;
  state.cards.set(name, card);
  const after = [...at("results").querySelectorAll("article")].find((other) => other.dataset.task > name);
  at("results").insertBefore(card.node, after || null);
  return card;
}

async function predict(name, card) {
  card.abort.abort();
  card.abort = new AbortController();
  card.asked = key();
  card.node.classList.add("waiting");
  card.node.querySelector(".error")?.remove();
  const begin = performance.now();
  const asked = card.asked;
  try {
    const url = `/v1/predict/${encodeURIComponent(name)}?drawn=true&score=${at("score").value}`;
    const headers = { "Content-Type": "application/octet-stream" };
    const answer = await told(await fetch(url, { method: "POST", body: state.image, headers, signal: card.abort.signal }));
    if (card.asked !== asked) return;
    card.drawn.src = `data:image/png;base64,${answer.drawn}`;
    card.drawn.hidden = false;
    card.time.textContent = duration(performance.now() - begin);
    card.found.replaceChildren(...foundIn(answer));
  } catch (error) {
    if (error.name === "AbortError") return;
    card.asked = null;
    card.drawn.hidden = true;
    card.time.textContent = "";
    card.found.replaceChildren();
    card.node.append(element("p", { className: "error", role: "alert", textContent: error.message }));
  }
  card.node.classList.remove("waiting");
}

const duration = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

function foundIn(answer) {
  const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
  let rows;
  if (answer.pixels) {
    const all = answer.width * answer.height;
    rows = Object.entries(answer.pixels).map(([label, count]) => [label, count / all, percent(count / all)]);
  } else if (answer.class_scores) {
    rows = answer.class_scores.map((score, label) => [label, score, percent(score)]);
  } else {
    const best = new Map();
    answer.labels.forEach((label, i) => best.set(label, [...(best.get(label) || []), answer.scores[i]]));
    rows = [...best].map(([label, scores]) => [label, scores[0], scores.map((score) => score.toFixed(2)).slice(0, 4).join(", ") + (scores.length > 4 ? ", …" : "")]);
  }
  rows.sort((a, b) => b[1] - a[1]);
  if (!rows.length) return [element("li", { textContent: "nothing with such a score" })];
  return rows.slice(0, 12).map(([label, , text]) => {
    const colour = element("i");
    colour.style.background = `rgb(${answer.palette[label % answer.palette.length].join(" ")})`;
    return element("li", {}, colour, answer.classes[label] ?? String(label), element("span", { textContent: text }));
  });
}

let split = 0;

function setSplit(value) {
  split = Number(value);
  at("results").style.setProperty("--split", `${split}%`);
  for (const card of state.cards.values()) card.slider.value = split;
}

// events

at("file").addEventListener("change", () => take(at("file").files[0]));
at("score").addEventListener("input", () => { at("score-value").textContent = Number(at("score").value).toFixed(2); });
at("score").addEventListener("change", run);
addEventListener("paste", (event) => take([...event.clipboardData.files][0]));
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files[0]);
  });
}
readTasks();
setInterval(readTasks, POLL_MS);
