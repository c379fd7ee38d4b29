// The page of explore.py: what payload.py embedded, searched and drawn. Text from the data reaches the page through
// text nodes alone (element), never as HTML. The address says what is shown: #users/ID, #items/ID, #compare/ID.
"use strict";

// ---------------------------------------------------------------- data

const TYPES = { u8: Uint8Array, u16: Uint16Array, u32: Uint32Array, f32: Float32Array };

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// A typed array of what packing.pack made. bf16 numbers are the upper halves of float32 numbers.
function unpack(packed) {
  const buffer = bytesOf(packed.data).buffer;
  if (packed.type !== "bf16") return new TYPES[packed.type](buffer);
  return new Float32Array(Uint32Array.from(new Uint16Array(buffer), (half) => half << 16).buffer);
}

// Function from a row to its values, of what packing.pack_rows made.
function unpackRows(packed) {
  const start = unpack(packed.start);
  const values = unpack(packed.values);
  return (row) => values.subarray(start[row], start[row + 1]);
}

const data = JSON.parse(document.getElementById("data").textContent);
const { users, items } = data;
const K = data.topk;
const REASONS = 3;
const NONE = items.ids.length; // stands for "no item"
const UNKNOWN = 255; // the agreement of an item without features
const trainOf = unpackRows(users.train);
const validOf = unpackRows(users.valid);
const testOf = unpackRows(users.test);
const count = unpack(items.count);
const places = items.places && unpack(items.places);
const agreement = items.agreement && unpack(items.agreement);
const pictures = data.pictures && { start: unpack(data.pictures.start), bytes: bytesOf(data.pictures.data) };
const near = Object.entries(items.near).map(([kind, packed]) => (
  { kind, items: unpack(packed.items), values: unpack(packed.values) }));
const runs = data.runs.map((run) => ({
  name: run.name,
  partNames: run.partNames,
  items: unpack(run.items),
  parts: unpack(run.parts),
  because: unpack(run.because),
  adds: unpack(run.adds),
}));
const numberOf = { users: index(users.ids), items: index(items.ids) };

function index(names) {
  return new Map(names.map((name, number) => [name, number]));
}

// The list of a user: [{item, score, parts: [number], because: [{item, adds}]}, ...].
function listOf(run, user) {
  const list = [];
  for (let at = user * K; at < (user + 1) * K && run.items[at] !== NONE; at++) {
    const n = run.partNames.length;
    const parts = [...run.parts.subarray(at * n, (at + 1) * n)];
    const because = [];
    for (let i = at * REASONS; i < (at + 1) * REASONS && run.because[i] !== NONE; i++) {
      because.push({ item: run.because[i], adds: run.adds[i] });
    }
    list.push({ item: run.items[at], score: parts.reduce((a, b) => a + b, 0), parts, because });
  }
  return list;
}

// "test", "valid" or "" for an item in a user's list.
function hitOf(user, item) {
  return testOf(user).includes(item) ? "test" : validOf(user).includes(item) ? "valid" : "";
}

function hasHit(user) {
  const list = runs[0].items.subarray(user * K, (user + 1) * K);
  return list.some((item) => item !== NONE && hitOf(user, item));
}

// ndcg@K of a user's test items; null without any.
function ndcgOf(run, user) {
  const relevant = testOf(user);
  if (!relevant.length) return null;
  let gain = 0, ideal = 0;
  for (let rank = 0; rank < K; rank++) {
    const worth = 1 / Math.log2(rank + 2);
    if (rank < relevant.length) ideal += worth;
    if (relevant.includes(run.items[user * K + rank])) gain += worth;
  }
  return gain / ideal;
}

// ---------------------------------------------------------------- elements

// An element with properties and children; a string becomes a text node.
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const LABELS = { id: "ID", together: "bought together" };
const label = (name) => LABELS[name] || name;
const colour = (name) => ["id", "text", "image", "audio", "evidence"].includes(name) ? `var(--${name})` : "var(--other)";
const titleOf = (item) => (items.titles && items.titles[item]) || items.ids[item];
const idUnlessTitle = (item) => titleOf(item) === items.ids[item] ? "" : items.ids[item];
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

function signed(value, digits) {
  const text = Math.abs(value).toFixed(digits);
  return value < 0 && Number(text) !== 0 ? `\u2212${text}` : text;
}

const urls = new Map();

function picture(item) {
  if (!pictures) return null;
  const [from, to] = [pictures.start[item], pictures.start[item + 1]];
  if (from === to) return element("span", { class: "picture" });
  if (!urls.has(item)) {
    urls.set(item, URL.createObjectURL(new Blob([pictures.bytes.subarray(from, to)], { type: "image/jpeg" })));
  }
  return element("img", { class: "picture", alt: "", src: urls.get(item) });
}

function itemButton(item, ...before) {
  const go = { type: "button", onclick: () => show("items", items.ids[item]), title: items.ids[item] };
  return element("button", go, ...before, titleOf(item));
}

function badge(user, item) {
  const hit = hitOf(user, item);
  return hit ? element("span", { class: "badge" }, `${hit} item`) : null;
}

// How far two modalities agree on an item, from 0 to 1; null where that is unknown.
const agreementOf = (item) => !agreement || agreement[item] === UNKNOWN ? null : agreement[item] / (UNKNOWN - 1);

const bought = (item) => element("span", { class: "quiet number" }, `bought ${count[item].toLocaleString("en")}\u00d7`);

// ---------------------------------------------------------------- a user

function drawUser(user) {
  const seen = trainOf(user);
  const chips = [...seen].map((item) => itemButton(item, picture(item) || ""));
  const held = [...testOf(user)].length + [...validOf(user)].length;
  const shown = runs.map((run) => element("div", {}, ...listView(run, user)));
  document.getElementById("user").replaceChildren(
    element("h2", {}, users.ids[user]),
    element("p", { class: "quiet" }, `${plural(seen.length, "item")} in train, ${held} held out`),
    element("h3", {}, "History"),
    element("div", { class: "items" }, ...chips),
    element("div", { class: runs.length > 1 ? "two" : "" }, ...shown),
  );
}

// Heading, legend and list of a run for a user.
function listView(run, user) {
  const list = listOf(run, user);
  const sums = list.map((entry) => [-1, 1].map((sign) => sum(entry.parts.filter((part) => part * sign > 0))));
  const low = Math.min(0, ...sums.map((pair) => pair[0]));
  const high = Math.max(1e-12, ...sums.map((pair) => pair[1]));
  const legend = run.partNames.map((name) => element("span", {}, swatch(name), label(name)));
  return [
    element("h3", {}, runs.length > 1 ? run.name : "Recommended"),
    element("p", { class: "legend" }, ...legend),
    element("ol", { class: "recommended" }, ...list.map((entry, n) => (
      element("li", {}, element("span", { class: "rank number" }, String(n + 1)), picture(entry.item) || "",
        recommended(run, user, entry, low, high))))),
  ];
}

function recommended(run, user, entry, low, high) {
  const values = run.partNames.map((name, n) => (
    element("span", { class: "value number" }, swatch(name), `${label(name)} ${signed(entry.parts[n], 3)}`)));
  const because = entry.because.flatMap(({ item, adds }, n) => [
    n ? ", " : "because of ", itemButton(item), ` (+${signed(adds, 3)})`]);
  return element("div", {},
    element("div", { class: "name" }, itemButton(entry.item), badge(user, entry.item), bought(entry.item)),
    bar(run.partNames, entry.parts, low, high),
    element("div", { class: "values" },
      element("span", { class: "number" }, `score ${signed(entry.score, 3)}`), ...values),
    because.length ? element("div", { class: "because" }, ...because) : null);
}

function sum(values) {
  return values.reduce((a, b) => a + b, 0);
}

function swatch(name) {
  const box = element("i");
  box.style.background = colour(name);
  return box;
}

// Parts above zero stacked to the right of the zero line, parts below it to the left.
function bar(names, parts, low, high) {
  const share = (value) => 100 * value / (high - low);
  const box = element("div", { class: "bar", "aria-hidden": "true" });
  let [left, right] = [-low, -low];
  parts.forEach((part, n) => {
    if (part < 0) left += part;
    box.append(piece(share(part < 0 ? left : right), share(Math.abs(part)), colour(names[n])));
    if (part > 0) right += part;
  });
  if (low < 0) {
    const zero = element("span", { class: "zero" });
    zero.style.left = `${share(-low)}%`;
    box.append(zero);
  }
  return box;
}

function piece(left, width, background) {
  const made = element("span");
  Object.assign(made.style, { left: `${left}%`, width: `${width}%`, background });
  return made;
}

// ---------------------------------------------------------------- an item

function drawItem(item) {
  const head = element("div", { class: "name" },
    picture(item), element("h2", {}, titleOf(item)), element("span", { class: "quiet" }, idUnlessTitle(item)), bought(item));
  const share = agreementOf(item);
  const agrees = share === null
    ? null
    : element("p", { class: "quiet" }, `${items.agreementOf.map(label).join(" and ")} agree: ${share.toFixed(2)} of 1`);
  document.getElementById("item").replaceChildren(head, ...(agrees ? [agrees] : []),
    element("div", { class: "columns" }, ...near.map((kind) => neighbours(kind, item))));
  drawMap(item);
}

function neighbours({ kind, items: others, values }, item) {
  const rows = [];
  for (let at = item * data.neighbours; at < (item + 1) * data.neighbours; at++) {
    if (others[at] === item) break;
    const value = kind === "together" ? plural(values[at], "user") : signed(values[at], 2);
    rows.push(element("li", {}, picture(others[at]), itemButton(others[at]), element("span", { class: "quiet number" }, value)));
  }
  const heading = kind === "together" ? "Bought together" : `Near by ${label(kind)}`;
  return element("div", { class: "near" }, element("h3", {}, heading),
    rows.length ? element("ul", {}, ...rows) : element("p", { class: "quiet" }, "none"));
}

// ---------------------------------------------------------------- the map

const map = { by: agreement ? "agreement" : "popularity", item: 0, canvas: null };
const dark = matchMedia("(prefers-color-scheme: dark)");
const RAMPS = { light: [[168, 184, 200], [120, 90, 170], [212, 70, 40]], dark: [[74, 94, 118], [152, 120, 196], [255, 158, 96]] };

function rampColour(share) {
  const stops = RAMPS[dark.matches ? "dark" : "light"];
  const [from, to, rest] = share < 0.5 ? [stops[0], stops[1], share * 2] : [stops[1], stops[2], share * 2 - 1];
  return `rgb(${from.map((value, n) => Math.round(value + rest * (to[n] - value))).join(" ")})`;
}

// Where an item stands on the ramp, from 0 to 1; null where that is unknown.
function shareOf(item) {
  if (map.by === "agreement") return agreementOf(item);
  return Math.log1p(count[item]) / Math.log1p(map.most);
}

function makeMap() {
  const box = document.getElementById("map");
  if (!places) return;
  map.most = count.reduce((a, b) => Math.max(a, b), 1);
  map.canvas = element("canvas", { role: "img", "aria-label": "Map of all items; the search finds them too" });
  map.tip = element("p", { class: "quiet" }, "\u00a0");
  const ramp = element("i", { class: "ramp" });
  map.paintRamp = () => {
    ramp.style.background = `linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map(rampColour).join(", ")})`;
  };
  const choices = ["agreement", "popularity"].filter((by) => by !== "agreement" || agreement).map((by) => {
    const radio = element("input", { type: "radio", name: "map-by", value: by, onchange: () => { map.by = by; drawMap(map.item); } });
    radio.checked = by === map.by;
    return element("label", {}, radio, ` ${by}`);
  });
  map.canvas.addEventListener("mousemove", (event) => {
    const item = itemAt(event);
    map.tip.textContent = item === null ? "\u00a0" : titleOf(item);
  });
  map.canvas.addEventListener("click", (event) => {
    const item = itemAt(event);
    if (item !== null) show("items", items.ids[item]);
  });
  box.append(element("div", { class: "map-head" }, element("h3", {}, `Map of all items (${data.map.toUpperCase()})`), ...choices,
    element("span", { class: "quiet" }, "low", ramp, "high")), map.canvas, map.tip);
  new ResizeObserver(() => drawMap(map.item)).observe(map.canvas);
  dark.addEventListener("change", () => drawMap(map.item));
}

const MARGIN = 12;

function pointOf(item) {
  const [width, height] = [map.canvas.clientWidth - 2 * MARGIN, map.canvas.clientHeight - 2 * MARGIN];
  return [MARGIN + width * places[2 * item] / 65535, MARGIN + height * (1 - places[2 * item + 1] / 65535)];
}

// The item nearest to the pointer, within 12 pixels.
function itemAt(event) {
  let [best, least] = [null, 144];
  for (let item = 0; item < NONE; item++) {
    const [x, y] = pointOf(item);
    const distance = (x - event.offsetX) ** 2 + (y - event.offsetY) ** 2;
    if (distance < least) [best, least] = [item, distance];
  }
  return best;
}

function drawMap(item) {
  map.item = item;
  if (!map.canvas || !map.canvas.clientWidth) return;
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [map.canvas.clientWidth, map.canvas.clientHeight].map((size) => Math.round(size * scale));
  if (map.canvas.width !== width || map.canvas.height !== height) Object.assign(map.canvas, { width, height });
  const draw = map.canvas.getContext("2d");
  draw.setTransform(scale, 0, 0, scale, 0, 0);
  draw.clearRect(0, 0, width, height);
  draw.globalAlpha = 0.75;
  draw.strokeStyle = getComputedStyle(document.body).color;
  const radius = NONE > 2000 ? 2 : 4;
  for (let other = 0; other < NONE; other++) dot(draw, other, radius);
  draw.globalAlpha = 1;
  dot(draw, item, radius + 3);
  draw.lineWidth = 2.5;
  draw.stroke();
  map.paintRamp();
}

// A disc in the colour of the item, or a ring where that is unknown.
function dot(draw, item, radius) {
  const [x, y] = pointOf(item);
  const share = shareOf(item);
  draw.beginPath();
  draw.arc(x, y, radius, 0, 2 * Math.PI);
  if (share === null) {
    draw.lineWidth = 1;
    draw.stroke();
  } else {
    draw.fillStyle = rampColour(share);
    draw.fill();
  }
}

// ---------------------------------------------------------------- two runs

const BINS = [[0, 3], [4, 5], [6, 10], [11, 20], [21, Infinity]];
const binName = ([from, to]) => !from ? `up to ${to}` : to === Infinity ? `${from} or more` : `${from} to ${to}`;
const MANY = 20; // users in each list of the largest differences

function compareUsers() {
  const rows = [];
  for (let user = 0; user < users.ids.length; user++) {
    const [a, b] = runs.map((run) => ndcgOf(run, user));
    if (a !== null) rows.push({ user, length: trainOf(user).length, a, b, gain: b - a });
  }
  return rows;
}

function drawCompare(rows) {
  const [a, b] = runs.map((run) => run.name);
  const bins = BINS.map((bin) => ({ name: binName(bin), rows: rows.filter((row) => row.length >= bin[0] && row.length <= bin[1]) }));
  const sorted = [...rows].sort((x, y) => x.gain - y.gain);
  const lists = [[a, sorted.filter((row) => row.gain < 0).slice(0, MANY)],
    [b, sorted.filter((row) => row.gain > 0).reverse().slice(0, MANY)]];
  document.getElementById("compare").replaceChildren(
    element("h2", {}, `${a} and ${b}`),
    element("p", { class: "quiet" }, `ndcg@${K} of the test items of ${plural(rows.length, "user")}, by the number of their train items`),
    element("div", { class: "scroll" }, gainTable([...bins, { name: "all", rows }].filter((bin) => bin.rows.length))),
    element("div", { class: "two" }, ...lists.map(([name, best]) => usersBetter(name, best))),
    element("div", { id: "side-by-side" }));
}

function gainTable(bins) {
  const rows = bins.map(({ name, rows: members }) => {
    const mean = (key) => sum(members.map((row) => row[key])) / members.length;
    return { name, n: members.length, a: mean("a"), b: mean("b"), better: [1, -1].map((sign) => members.filter((row) => row.gain * sign > 0).length) };
  });
  const most = Math.max(1e-12, ...rows.map((row) => Math.abs(row.b - row.a)));
  const head = ["train items", "users", runs[0].name, runs[1].name, "difference", "", ...[1, 0].map((n) => `better with ${runs[n].name}`)];
  const cells = (row) => [row.name, row.n.toLocaleString("en"), row.a.toFixed(4), row.b.toFixed(4), signed(row.b - row.a, 4),
    gainBar((row.b - row.a) / most), ...row.better.map((n) => `${(100 * n / row.n).toFixed(1)} %`)];
  return element("table", {},
    element("thead", {}, element("tr", {}, ...head.map((name) => element("th", { scope: "col" }, name)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...cells(row).map((cell) => element("td", {}, cell))))));
}

function gainBar(share) {
  const box = element("span", { class: "gain", "aria-hidden": "true" });
  box.append(piece(share < 0 ? 50 + 50 * share : 50, 50 * Math.abs(share), share < 0 ? "var(--evidence)" : "var(--image)"));
  return box;
}

function usersBetter(name, rows) {
  const entries = rows.map((row) => element("li", {}, element("button",
    { type: "button", "data-user": users.ids[row.user], onclick: () => show("compare", users.ids[row.user]) },
    element("span", {}, users.ids[row.user]),
    element("span", { class: "quiet number" }, `${plural(row.length, "item")}, +${Math.abs(row.gain).toFixed(2)}`))));
  return element("div", {}, element("h3", {}, `Served better by ${name}`),
    rows.length ? element("ul", { class: "users-list" }, ...entries) : element("p", { class: "quiet" }, "none"));
}

function drawSideBySide(user) {
  const shown = runs.map((run) => element("div", {}, ...listView(run, user)));
  const open = element("button", { type: "button", onclick: () => show("users", users.ids[user]) }, users.ids[user]);
  document.getElementById("side-by-side").replaceChildren(
    element("h3", {}, "Side by side"), element("h2", {}, open), element("div", { class: "two" }, ...shown));
  for (const button of document.querySelectorAll(".users-list button")) {
    mark(button, button.dataset.user === users.ids[user]);
  }
}

// ---------------------------------------------------------------- search

const MOST_RESULTS = 100;

// A search box with its results; rows: {id, number, title, note, words}; keep: further condition on a number.
function makeSearch(view, rows, keep = () => true) {
  const section = document.getElementById(view);
  const input = section.querySelector("input[type=search]");
  const list = section.querySelector(".results");
  const update = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = rows.filter((row) => words.every((word) => row.words.includes(word)) && keep(row.number));
    section.querySelector(".count").textContent = found.length > MOST_RESULTS
      ? `${found.length.toLocaleString("en")} found, the first ${MOST_RESULTS} shown` : `${found.length} found`;
    list.replaceChildren(...found.slice(0, MOST_RESULTS).map((row) => element("li", {}, element("button",
      { type: "button", "data-id": row.id, onclick: () => show(view, row.id) },
      row.title, element("span", { class: "quiet" }, row.note)))));
    markChosen();
  };
  input.addEventListener("input", update);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && list.querySelector("button")) list.querySelector("button").click();
  });
  section.querySelector("aside").addEventListener("keydown", moveFocus);
  return update;
}

// The arrow keys move between the search box and its results.
function moveFocus(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  const stops = [...event.currentTarget.querySelectorAll("input[type=search], .results button")];
  const next = stops[stops.indexOf(document.activeElement) + step];
  if (next) { next.focus(); event.preventDefault(); }
}

function mark(button, chosen) {
  if (chosen) button.setAttribute("aria-current", "true");
  else button.removeAttribute("aria-current");
}

function markChosen() {
  const [view, id] = readAddress();
  for (const button of document.querySelectorAll(`#${view} .results button`)) mark(button, button.dataset.id === id);
}

// ---------------------------------------------------------------- the address

function show(view, id) {
  location.hash = `${view}/${encodeURIComponent(id)}`;
}

// [view, id] of the address; what is missing or unknown becomes the first.
function readAddress() {
  const [view, text = ""] = location.hash.slice(1).split("/");
  const known = ["users", "items", ...(runs.length > 1 ? ["compare"] : [])].includes(view) ? view : "users";
  let id = "";
  try { id = decodeURIComponent(text); } catch { /* not an address of this page */ }
  const names = known === "items" ? "items" : "users";
  return [known, numberOf[names].has(id) ? id : known === "compare" ? "" : data[names].ids[0]];
}

const last = {}; // what each view showed last

function draw() {
  const [view, id] = readAddress();
  last[view] = id;
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== view;
  for (const button of document.querySelectorAll("nav button")) mark(button, button.dataset.view === view);
  if (view === "users") drawUser(numberOf.users.get(id));
  if (view === "items") drawItem(numberOf.items.get(id));
  if (view === "compare") {
    if (!document.getElementById("side-by-side")) drawCompare(compareUsers());
    if (id) drawSideBySide(numberOf.users.get(id));
  }
  markChosen();
}

function start() {
  const few = data.excluded.length ? `without items of ${data.excluded.join(" and ")}` : "among all items";
  document.getElementById("summary").textContent =
    `${plural(users.ids.length, "user")}, ${plural(NONE, "item")}, the top ${K} ${few}`;
  const onlyHits = document.getElementById("only-hits");
  const userRows = users.ids.map((id, number) => (
    { id, number, title: id, note: plural(trainOf(number).length, "item"), words: id.toLowerCase() }));
  const itemRows = items.ids.map((id, number) => ({
    id, number, title: titleOf(number), note: `${idUnlessTitle(number)} bought ${count[number].toLocaleString("en")}\u00d7`,
    words: `${titleOf(number)} ${id}`.toLowerCase(),
  }));
  const searches = [makeSearch("users", userRows, (user) => !onlyHits.checked || hasHit(user)), makeSearch("items", itemRows)];
  onlyHits.addEventListener("change", searches[0]);
  searches.forEach((update) => update());
  makeMap();
  for (const button of document.querySelectorAll("nav button")) {
    button.hidden = button.dataset.view === "compare" && runs.length < 2;
    button.addEventListener("click", () => show(button.dataset.view, last[button.dataset.view] || ""));
  }
  addEventListener("hashchange", draw);
  addEventListener("keydown", (event) => {
    const input = document.querySelector("main > section:not([hidden]) input[type=search]");
    if (event.key === "/" && input && document.activeElement !== input) { input.focus(); event.preventDefault(); }
  });
  draw();
}

start();
