"use strict";
// Only the round in view is drawn, and a block of text gets its coloured tokens when it comes near
// the visible part of its frame; so the page costs the same for 20 rounds and for 20,000.
const data = JSON.parse(document.getElementById("data").textContent);
const [text, tree, times, slider, where, overview] =
  ["text", "tree", "times", "slider", "where", "overview"].map(id => document.getElementById(id));
const SHADES = 8, INDENT = 16, BLOCK = 40;
let shown, round = 0, origins, blocks, lit = [];

function make(kind, looks, words, parent) {
  const made = document.createElement(kind);
  if (looks) made.className = looks;
  if (words !== undefined) made.textContent = words;
  if (parent) parent.append(made);
  return made;
}
const at = (column, node) => column ? column[node] : null; // a column without numbers is left out
const shade = depth => depth ? `d d${Math.min(depth, SHADES)}` : "b";
const label = token => (data.labels[token] ?? String(token)).replace(/\n/g, "↵").replace(/\t/g, "⇥")
  .replace(/^ +| +$/g, spaces => "␣".repeat(spaces.length));
const digits = x => x === null || x === undefined ? "–"
  : x === 0 || x >= 0.001 ? x.toFixed(3) : x.toExponential(0);
const coinDigits = x => x === 0 || x >= 0.0001 ? x.toFixed(4) : x.toExponential(1);

// ------------------------------------------------------------------------------------------ text

// A block ends where a line of the text ends, so that blocks can be one below the other.
function layOut() {
  origins = new Array(shown.words.length);
  shown.rounds.forEach((one, number) => one.depths.forEach((depth, n) =>
    origins[one.start + n] = { round: number, depth }));
  blocks = [];
  text.replaceChildren();
  // The text goes on in the prompt's last line.
  const line = shown.prompt.lastIndexOf("\n") + 1;
  if (line) make("div", "prompt", shown.prompt.slice(0, line), text);
  const words = shown.words;
  let block = { first: 0, before: shown.prompt.slice(line), skip: 0 };
  for (let n = 1; n <= words.length; n++) {
    const ended = words[n - 1].endsWith("\n"), begins = n < words.length && words[n].startsWith("\n");
    if (n < words.length && (n - block.first < BLOCK || !(ended || begins))) continue;
    // Where the next word begins with the line's end, the end of the block takes its place.
    lay({ ...block, end: n });
    block = { first: n, before: "", skip: ended ? 0 : 1 };
  }
  make("div", "prompt", `(${shown.ended})`, text);
}
function lay(block) {
  const words = shown.words.slice(block.first, block.end).join("").slice(block.skip);
  block.place = make("div", "", block.before + words, text);
  block.place.dataset.block = blocks.length;
  blocks.push(block);
  near.observe(block.place);
}
const near = new IntersectionObserver(seen => seen.forEach(one => {
  if (one.isIntersecting) fill(blocks[one.target.dataset.block]);
}), { root: text, rootMargin: "200px" });

function fill(block) {
  if (!block || block.spans) return;
  block.spans = [];
  near.unobserve(block.place);
  const parts = new DocumentFragment();
  if (block.before) make("span", "prompt", block.before, parts);
  for (let n = block.first; n < block.end; n++) {
    const span = make("span", `t ${shade(origins[n]?.depth)}`, shown.words[n].slice(n === block.first ? block.skip : 0), parts);
    span.dataset.n = n;
    block.spans.push(span);
  }
  block.place.replaceChildren(parts);
}
function spanOf(n) {
  const block = blocks.find(one => n < one.end);
  fill(block);
  return block?.spans[n - block.first];
}
text.addEventListener("click", event => {
  const n = event.target.dataset.n;
  if (n !== undefined && origins[n]) go(origins[n].round, false);
});
text.addEventListener("mouseover", event => {
  const from = origins[event.target.dataset.n];
  if (from) event.target.title = `round ${from.round + 1}, ` +
    (from.depth ? `drafted at depth ${from.depth}` : "the target's own token");
});

function light(one, scroll) {
  lit.forEach(span => span.classList.remove("now"));
  lit = one.depths.map((_, n) => spanOf(one.start + n)).filter(Boolean);
  lit.forEach(span => span.classList.add("now"));
  if (!scroll || !lit.length) return;
  const top = lit[0].offsetTop, last = lit[lit.length - 1];
  const out = top < text.scrollTop + 20 ||
    last.offsetTop + last.offsetHeight > text.scrollTop + text.clientHeight - 20;
  if (out) text.scrollTop = top - text.clientHeight / 2;
}

// ------------------------------------------------------------------------------------------ tree

// What the records say about one node: [looks, words].
function verdict(one, parents, node) {
  const depth = one.path.indexOf(node) + 1, parent = parents[node], token = one.tokens[node];
  const asked = at(one.asked, node), coin = at(one.coin, node);
  const toss = asked === null ? "" : coin === null ? `chance ${digits(asked)}`
    : `coin ${coinDigits(coin)} ${coin < asked ? "<" : "≥"} ${coinDigits(asked)}`;
  if (depth) {
    const cut = depth > one.depths.length ? "; cut, the text had ended" : "";
    if (toss && !(coin >= asked)) return ["yes", `accepted: ${toss}${cut}`];
    if (toss) return ["yes", `accepted with what is below it (${toss})${cut}`];
    if (one.drawn[parent] === token) return ["yes", `accepted: the target's token${cut}`];
    const later = one.path.slice(depth).some(next => at(one.asked, next) !== null);
    return ["yes", `accepted${later ? " with what is below it" : ""}${cut}`];
  }
  if (toss) return coin === null || coin >= asked ? ["no", `rejected: ${toss}`] : ["", `not kept (${toss})`];
  if (parent !== 0 && !one.path.includes(parent)) return ["", "not reached"];
  const drawn = one.drawn[parent];
  if (drawn === token) return ["no", "dead: a sibling before it has its token"];
  const after = one.path[one.path.indexOf(parent) + 1];
  if (after === undefined || drawn >= 0)
    return ["no", drawn >= 0 ? `rejected: the target's token is “${label(drawn)}”` : "rejected"];
  return ["", "not tried: a sibling was accepted"];
}

function law(row, name, value) {
  const cell = make("span", `law${value > 0 ? "" : " none"}`, digits(value), row);
  cell.style.backgroundSize = `${100 * Math.min(value || 0, 1)}% 3px`;
  cell.title = value === null || value === undefined ? `no ${name}` : `${name} = ${value}`;
}
function line(depth, looks, words, p, q, why, hint) {
  const row = make("div", `n ${looks}`, undefined, tree);
  row.style.setProperty("--indent", `${depth * INDENT + 20}px`);
  const cell = make("span", "cell", undefined, row);
  cell.style.paddingLeft = `${depth * INDENT + 20}px`;
  const token = make("span", `token d${Math.min(depth, SHADES)}`, words, cell);
  if (hint) token.title = hint;
  law(row, "q", q);
  law(row, "p", p);
  make("span", "why", why, row);
  return row;
}

function drawTree(one) {
  const parents = data.shapes[one.shape], below = parents.map(() => []), rows = [];
  parents.forEach((parent, node) => { if (node && parent >= 0) below[parent].push(node); });
  const end = one.path.length ? one.path[one.path.length - 1] : 0;
  tree.replaceChildren();
  const head = make("div", "n head", undefined, tree);
  for (const [looks, words] of [["", "token"], ["law", "q"], ["law", "p"], ["why", "verdict"]])
    make("span", looks, words, head);
  const visit = (node, depth, above) => {
    const token = one.tokens[node];
    const q = node ? at(one.q, node) : null, p = node ? at(one.p, node) : null;
    const [looks, why] = node ? verdict(one, parents, node) : ["", "root: the last token so far"];
    const ratio = node && q > 0 && at(one.asked, node) !== null ? `, p/q ${Number((p / q).toPrecision(3))}` : "";
    const place = rows.push({ depth, looks: node ? looks : "own", above,
      place: line(depth, looks, label(token), p, q, why + ratio, `token ${token}, node ${node}`) }) - 1;
    below[node].forEach(child => visit(child, depth + 1, place));
    if (node === end && one.drawn[node] >= 0) {
      const cut = one.depths.length <= one.path.length ? "; cut, the text had ended" : "";
      rows.push({ depth: depth + 1, looks: "own", above: place, place: line(depth + 1, "",
        label(one.drawn[node]), at(one.drawn_p, node), null, `bonus: the target's own${cut}`,
        `token ${one.drawn[node]}`) });
    }
  };
  visit(0, 0, -1);
  drawEdges(rows);
}

function drawEdges(rows) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const add = (kind, looks, values) => {
    const made = document.createElementNS(svg.namespaceURI, kind);
    made.setAttribute("class", looks);
    for (const name in values) made.setAttribute(name, values[name]);
    svg.append(made);
  };
  const spots = rows.map(one => ({ x: one.depth * INDENT + 8,
    y: one.place.firstChild.offsetTop + one.place.firstChild.offsetHeight / 2 }));
  const edges = rows.flatMap((one, n) => one.above < 0 ? [] : [{ looks: one.looks, up: spots[one.above], to: spots[n] }]);
  for (const looks of ["", "yes"]) // the accepted path on top
    for (const { up, to } of edges.filter(edge => (edge.looks === "yes") === (looks === "yes")))
      add("path", looks, { d: `M${up.x},${up.y}V${to.y}H${to.x}` });
  rows.forEach((one, n) => add("circle", one.looks, { cx: spots[n].x, cy: spots[n].y, r: 5 }));
  tree.append(svg);
}

// ----------------------------------------------------------------------------------------- times

function drawTimes(one) {
  const total = one.ms.reduce((sum, ms) => sum + ms, 0);
  const batch = one.rows > 1 ? `, for all ${one.rows} rows` : "";
  times.replaceChildren(`${total.toPrecision(3)} ms${batch}`);
  const bar = make("div", "", undefined, times);
  bar.id = "bar";
  const list = make("ul", "", undefined, times);
  one.ms.forEach((ms, n) => {
    if (!ms) return;
    make("i", `k${n}`, undefined, bar).style.flex = `${ms} 1 0`;
    const item = make("li", "", undefined, list);
    make("i", `k${n}`, undefined, item);
    item.append(`${data.phases[n]} ${ms.toPrecision(3)} ms`);
  });
}

// -------------------------------------------------------------------------------------- overview

function drawOverview() {
  const wide = overview.width = overview.clientWidth * devicePixelRatio;
  const high = overview.height = 36 * devicePixelRatio;
  const pen = overview.getContext("2d"), counts = shown.rounds.map(one => one.depths.length);
  const most = Math.max(1, ...counts), step = wide / counts.length;
  pen.fillStyle = getComputedStyle(document.body).getPropertyValue("--target");
  counts.forEach((count, n) =>
    pen.fillRect(n * step, high * (1 - count / most), Math.max(step - (step > 4), 0.5), high));
}
overview.title = "tokens kept per round";
overview.addEventListener("click", event =>
  go(Math.floor(event.offsetX / overview.clientWidth * shown.rounds.length)));

// ------------------------------------------------------------------------------------ navigation

function go(number, scroll = true) {
  round = Math.max(0, Math.min(shown.rounds.length - 1, number));
  const one = shown.rounds[round];
  if (!one) return;
  slider.value = round;
  const kept = one.depths.length, drafted = one.depths.filter(Boolean).length;
  where.textContent = `round ${round + 1} of ${shown.rounds.length}: kept ${kept}` +
    ` (${drafted} drafted${kept > drafted ? ", 1 bonus" : ""})`;
  light(one, scroll);
  drawTree(one);
  drawTimes(one);
}
const KEYS = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9 };
addEventListener("keydown", event => {
  if (!(event.key in KEYS) || event.target.tagName === "SELECT" || event.ctrlKey || event.altKey ||
    event.metaKey) return;
  event.preventDefault();
  go(round + KEYS[event.key]);
});
slider.addEventListener("input", () => go(Number(slider.value)));
document.getElementById("before").addEventListener("click", () => go(round - 1));
document.getElementById("after").addEventListener("click", () => go(round + 1));
new ResizeObserver(() => { drawOverview(); go(round, false); }).observe(document.body.firstElementChild);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawOverview);

function open(prompt) {
  shown = data.texts[prompt];
  slider.max = Math.max(0, shown.rounds.length - 1);
  near.disconnect();
  lit = [];
  layOut();
  drawOverview();
  go(0);
}

const report = Object.entries(data.report).filter(([, value]) => value !== null);
document.getElementById("report").textContent =
  report.map(([name, value]) => `${name} ${Number(Number(value).toPrecision(3)) < 100 ?
    Number(value).toPrecision(3) * 1 : value}`).join(" · ");
const legend = document.getElementById("legend");
const deepest = data.texts.reduce((most, one) =>
  one.rounds.reduce((deep, r) => Math.max(deep, ...r.depths), most), 0);
legend.append("drafted at depth ");
for (let depth = 1; depth <= Math.min(deepest, SHADES); depth++)
  make("span", `t ${shade(depth)}`, depth + (depth === SHADES && deepest > SHADES ? "+" : ""), legend);
make("span", "t b", "the target's own", legend);
const chooser = document.getElementById("prompt");
data.texts.forEach((one, n) =>
  make("option", "", `${n + 1}: ${one.prompt.slice(0, 40)}`, chooser).value = n);
document.getElementById("chooser").hidden = data.texts.length < 2;
chooser.addEventListener("change", () => open(Number(chooser.value)));
open(0);
document.documentElement.dataset.opened = Math.round(performance.now());
