"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const { frames, layers, columns } = data;
const ROW = 64;
const STAGES = ["#3b7ea1", "#d9683a", "#7a9a3c", "#8d6bb0", "#c9a227", "#5aa9a0", "#a3516b"];
const anomalous = columns.findIndex((column) => column.key === "anomalous");
const tops = columns.map((column, i) =>
  column.unit === "score" ? 1 : frames.reduce((top, frame) => Math.max(top, frame.values[i] ?? 0), 1e-9));
let shown = []; // numbers of the frames that the list shows, in its order
let current = -1; // number of the frame in the viewer
let column = 0; // that is plotted and written in the list
const chosen = { left: data.start[0], right: data.start[1] };

function written(value, unit) {
  if (value === null || value === undefined) return "–";
  if (unit === "share") return (100 * value).toFixed(value < 0.1 ? 2 : 1) + "%";
  if (unit === "seconds") return value < 0.1 ? (1000 * value).toFixed(0) + " ms" : value.toFixed(2) + " s";
  return value.toFixed(4);
}

function counted(count) {
  return count.toLocaleString("en");
}

function make(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function picture(frame, key) {
  return `${frame.base}_${encodeURIComponent(key)}.jpg`;
}

// The viewer

function keyFor(frame, side) {
  const has = frame.has.map((i) => layers[i].key);
  if (has.includes(chosen[side])) return chosen[side];
  return side === "left" ? has[0] : has[has.length - 1];
}

function showPictures() {
  const frame = frames[current];
  const none = frame.has.length === 0;
  for (const side of ["left", "right"]) {
    const key = keyFor(frame, side);
    const layer = layers.find((each) => each.key === key);
    const image = at(side);
    image.classList.toggle("missing", none);
    if (none) image.removeAttribute("src");
    else {
      const source = picture(frame, key);
      if (image.getAttribute("src") !== source) image.src = source;
      image.alt = `${layer.title} of ${frame.name}`;
    }
    at(`${side}-tag`).textContent = none ? "" : layer.title;
    at(`${side}-tag`).hidden = none;
    for (const radio of at(`${side}-choices`).querySelectorAll("input")) {
      radio.disabled = !frame.has.some((i) => layers[i].key === radio.value);
      radio.checked = !none && radio.value === key;
    }
  }
  at("divider").hidden = at("slider").hidden = none;
  at("missing").hidden = !none;
  at("missing").textContent = "No pictures of this frame were kept beside the page.";
  at("scale").hidden = none || !["left", "right"].some((side) => /^(heatmap|map)/.test(keyFor(frame, side)));
}

function showValues() {
  const frame = frames[current];
  at("values").replaceChildren(...columns.map((each, i) => {
    const pair = make("div");
    pair.append(make("dt", each.title), make("dd", written(frame.values[i], each.unit)));
    return pair;
  }));
  const stages = Object.entries(frame.timings).filter(([stage, seconds]) => stage !== "total" && seconds > 0);
  at("timings").hidden = stages.length === 0;
  const total = stages.reduce((sum, [, seconds]) => sum + seconds, 0);
  at("timings").querySelector(".stages").replaceChildren(...stages.map(([, seconds], i) => {
    const part = make("i");
    part.style.cssText = `flex: ${(100 * seconds) / total} 0 0; background: ${STAGES[i % STAGES.length]}`;
    return part;
  }));
  at("timings").querySelector("ul").replaceChildren(...stages.map(([stage, seconds], i) => {
    const item = make("li", `${stage} ${written(seconds, "seconds")}`);
    item.style.setProperty("--stage", STAGES[i % STAGES.length]);
    return item;
  }));
}

function showFiles() {
  const frame = frames[current];
  const links = frame.files.map(([label, address]) => make("a", label, { href: address }));
  at("files").replaceChildren(...links);
  at("source").textContent = frame.source;
  const motion = at("motion");
  motion.hidden = !frame.motion;
  const film = /\.mp4$/.test(frame.motion);
  const inside = !frame.motion || !motion.open ? [] : [film
    ? make("video", "", { src: frame.motion, controls: "", loop: "", muted: "" })
    : make("img", "", { src: frame.motion, alt: `The edit of ${frame.name} on its way from noise` })];
  motion.querySelector("div").replaceChildren(...inside);
}

function select(number, scroll = true) {
  if (number === undefined || number < 0) return;
  current = number;
  const frame = frames[current];
  const place = shown.indexOf(current);
  at("name").textContent = frame.name;
  at("name").title = frame.name;
  at("position").textContent = place < 0 ? "not in the list" : `${counted(place + 1)} of ${counted(shown.length)}`;
  at("previous").disabled = place <= 0;
  at("next").disabled = place < 0 || place >= shown.length - 1;
  showPictures();
  showValues();
  showFiles();
  if (scroll && place >= 0) reveal(place);
  drawRows();
  plot();
  history.replaceState(null, "", "#" + encodeURIComponent(wellFormed(frame.name)));
  for (const neighbour of [shown[place + 1], shown[place - 1]]) { // so that the next key is quick
    if (place < 0 || neighbour === undefined || !frames[neighbour].has.length) continue;
    for (const side of ["left", "right"]) new Image().src = picture(frames[neighbour], keyFor(frames[neighbour], side));
  }
}

function wellFormed(text) { // a lone surrogate, of a name that is no Unicode, cannot be encoded
  return text.replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "\ufffd");
}

function step(by) {
  const place = shown.indexOf(current);
  if (shown.length) select(shown[Math.max(0, Math.min(shown.length - 1, place < 0 ? 0 : place + by))]);
}

function divide(percent) {
  const value = Math.max(0, Math.min(100, percent));
  at("slider").value = value;
  at("compare").style.setProperty("--at", value + "%");
}

// The list: only the rows in view are there, so that thousands of frames cost no more than a few.

const made = new Map(); // row by number of its frame

function makeRow(number) {
  const frame = frames[number];
  const row = make("div", "", { class: "row", role: "option", id: `row-${number}` });
  const label = make("div", "", { class: "label" });
  const meter = make("span", "", { class: "meter" });
  meter.append(make("i"), make("em"));
  label.append(make("b", frame.name, { title: frame.name }), meter);
  row.append(frame.has.length
    ? make("img", "", { src: `${frame.base}_thumb.jpg`, alt: "", loading: "lazy", decoding: "async", width: 88, height: 50 })
    : make("span", "", { class: "none" }), label);
  row.addEventListener("click", () => {
    select(number, false);
    if (matchMedia("(max-width: 900px)").matches) at("viewer").scrollIntoView({ block: "start" });
  });
  return row;
}

function drawRows() {
  const list = at("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 6);
  const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 6);
  at("rows").style.height = `${shown.length * ROW}px`;
  const inView = shown.slice(first, last);
  for (const number of made.keys()) {
    if (!inView.includes(number)) made.delete(number);
  }
  const rows = inView.map((number, i) => {
    if (!made.has(number)) made.set(number, makeRow(number));
    const row = made.get(number);
    const value = frames[number].values[column];
    row.style.top = `${(first + i) * ROW}px`;
    row.setAttribute("aria-selected", String(number === current));
    row.setAttribute("aria-posinset", first + i + 1);
    row.setAttribute("aria-setsize", shown.length);
    row.querySelector("em").textContent = written(value, columns[column].unit);
    row.querySelector("i").style.setProperty("--share", `${(100 * (value ?? 0)) / tops[column]}%`);
    return row;
  });
  // In the list's order in the document too, for those who have it read aloud.
  const there = at("rows").children;
  if (rows.length !== there.length || rows.some((row, i) => row !== there[i])) at("rows").replaceChildren(...rows);
  if (made.has(current)) list.setAttribute("aria-activedescendant", `row-${current}`);
  else list.removeAttribute("aria-activedescendant");
}

function reveal(place) {
  const list = at("list");
  const top = place * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
}

function arrange(stay = true) {
  const query = at("query").value.trim().toLowerCase();
  const only = at("only").checked;
  shown = [];
  frames.forEach((frame, number) => {
    if (query && !frame.name.toLowerCase().includes(query) && !frame.source.toLowerCase().includes(query)) return;
    if (only && !(frame.values[anomalous] > 0)) return;
    shown.push(number);
  });
  const [by, order] = at("sort").value.split(" ");
  if (by !== "order") {
    column = Number(by);
    const sign = order === "down" ? -1 : 1;
    const value = (number) => frames[number].values[column];
    shown.sort((a, b) => (value(a) === null) - (value(b) === null) || sign * (value(a) - value(b)) || a - b);
  } else {
    column = 0;
  }
  const all = `${counted(frames.length)} frame${frames.length === 1 ? "" : "s"}`;
  at("count").textContent = shown.length === frames.length ? all : `${counted(shown.length)} of ${all}`;
  at("list").scrollTop = 0;
  select((stay && shown.includes(current)) || !shown.length ? current : shown[0]);
  drawRows();
}

// The plot: one column of the list's frames, in the list's order; of many in one pixel the highest.

function plot() {
  const canvas = at("plot");
  const style = getComputedStyle(document.documentElement);
  const ratio = devicePixelRatio || 1;
  const width = canvas.clientWidth, height = 56;
  if (!width) return;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const draw = canvas.getContext("2d");
  draw.scale(ratio, ratio);
  draw.fillStyle = style.getPropertyValue("--line");
  draw.fillRect(0, height - 1, width, 1);
  const share = width / Math.max(1, shown.length);
  const bar = Math.max(1, Math.min(14, share - 1));
  draw.fillStyle = style.getPropertyValue("--bar");
  const heights = new Map();
  shown.forEach((number, place) => {
    const x = share >= 2 ? place * share + (share - bar) / 2 : Math.floor(place * share);
    const value = Math.min(1, (frames[number].values[column] ?? 0) / tops[column]);
    heights.set(x, Math.max(heights.get(x) ?? 0, value));
  });
  for (const [x, value] of heights) draw.fillRect(x, (height - 2) * (1 - value) + 1, bar, (height - 2) * value);
  const place = shown.indexOf(current);
  if (place >= 0) {
    draw.fillStyle = style.getPropertyValue("--text");
    draw.fillRect(Math.round(place * share + share / 2) - 1, 0, 2, height);
  }
  canvas.setAttribute("aria-label", `${columns[column].title} of each frame in the list`);
}

// Controls

for (const side of ["left", "right"]) {
  for (const layer of layers) {
    if (!frames.some((frame) => frame.has.some((i) => layers[i].key === layer.key))) continue;
    const label = make("label");
    const radio = make("input", "", { type: "radio", name: side, value: layer.key });
    radio.addEventListener("change", () => { chosen[side] = layer.key; showPictures(); });
    label.append(radio, make("span", layer.title));
    at(`${side}-choices`).append(label);
  }
}
at("sort").append(make("option", "Order", { value: "order" }));
columns.forEach((each, i) => {
  at("sort").append(make("option", `${each.title}, highest first`, { value: `${i} down` }));
  at("sort").append(make("option", `${each.title}, lowest first`, { value: `${i} up` }));
});
at("only-label").hidden = anomalous < 0;
at("sort").addEventListener("change", () => arrange(false));
at("query").addEventListener("input", () => arrange());
at("only").addEventListener("change", () => arrange());
at("list").addEventListener("scroll", () => requestAnimationFrame(drawRows), { passive: true });
at("previous").addEventListener("click", () => step(-1));
at("next").addEventListener("click", () => step(1));
at("motion").addEventListener("toggle", showFiles);
at("slider").addEventListener("input", () => divide(at("slider").valueAsNumber));
at("slider").addEventListener("pointerup", () => at("slider").blur()); // arrows turn to frames again
at("plot").addEventListener("click", (event) => {
  select(shown[Math.min(shown.length - 1, Math.floor((event.offsetX / at("plot").clientWidth) * shown.length))]);
});
addEventListener("resize", () => { drawRows(); plot(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", plot);

const STEPS = { ArrowLeft: -1, ArrowUp: -1, k: -1, ArrowRight: 1, ArrowDown: 1, j: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9 };
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const on = event.target;
  if (event.key === "Escape" && on === at("query")) return on.blur();
  if (on.matches("select, input[type=search], input[type=radio], input[type=range], .table, summary")) return;
  const layer = /^Digit[1-9]$/.test(event.code) && [...at("left-choices").querySelectorAll("input")][event.code.slice(5) - 1];
  if (event.key in STEPS) step(STEPS[event.key]);
  else if (event.key === "[" || event.key === "]") divide(at("slider").valueAsNumber + (event.key === "[" ? -5 : 5));
  else if (event.key === "/") at("query").focus();
  else if (layer) { chosen[event.shiftKey ? "left" : "right"] = layer.value; showPictures(); }
  else return;
  event.preventDefault();
});

let asked = "";
try { asked = decodeURIComponent(location.hash.slice(1)); } catch { /* not one of ours */ }
divide(50);
arrange();
const found = frames.findIndex((frame) => wellFormed(frame.name) === asked);
if (found >= 0) select(found);
if (!frames.length) at("viewer").hidden = true;
