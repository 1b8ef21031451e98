// The console's page: it follows the gateway by server-sent events and only ever reads. Names, keys and paths
// may be anything, so they are written as text (textContent) and never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const KEPT = 60; // bars of a route: a minute
const SHOWN = 50; // routes that are drawn at first
const BAND = 5 * 60 * 1000; // milliseconds of a circuit's band

// el makes an element. A child that is a string becomes text.
function el(tag, attributes, ...children) {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) e.setAttribute(name, value);
  e.append(...children);
  return e;
}

function svg(tag, attributes, ...children) {
  const e = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes || {})) e.setAttribute(name, value);
  e.append(...children);
  return e;
}

// setText writes only what has changed, so that a selection survives.
function setText(e, text) {
  if (e.textContent !== text) e.textContent = text;
}

function number(v) {
  if (v === 0) return "0";
  if (v < 10) return v.toFixed(1);
  if (v < 10000) return String(Math.round(v));
  return v < 1e7 ? Math.round(v / 1000) + "k" : Math.round(v / 1e6) + "M";
}

function percent(share) {
  const p = share * 100;
  return p === 0 ? "0 %" : p < 0.1 ? "< 0.1 %" : (p < 10 ? p.toFixed(1) : Math.round(p)) + " %";
}

function duration(ms) {
  if (ms === 0) return "–";
  if (ms < 1) return Math.max(1, Math.round(ms * 1000)) + " µs";
  if (ms < 9.95) return ms.toFixed(1) + " ms";
  return ms < 10000 ? Math.round(ms) + " ms" : (ms / 1000).toFixed(1) + " s";
}

const clock = (at) => new Date(at).toLocaleTimeString([], {hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false});

// ── routes

let overview = {routes: [], outcomes: [], failures: []};
const routes = new Map(); // by name, in the order of precedence
let statsAt = 0;
let showAll = false;

function newRoute(name, pattern, match) {
  return {name, pattern, match, rate: 0, errors: 0, p50: 0, p95: 0, p99: 0, counts: null, bars: [], failed: [], row: null};
}

function takeOverview(o) {
  overview = o;
  const before = new Map(routes);
  routes.clear();
  for (const r of o.routes) {
    const old = before.get(r.name);
    const now = newRoute(r.name, r.pattern, r.match || []);
    if (old) Object.assign(now, {bars: old.bars, failed: old.failed, counts: old.counts});
    routes.set(r.name, now);
  }
  statsAt = 0;
  $("routes-section").hidden = !o.router && !o.stats;
  $("explain-section").hidden = !o.router;
  $("limits-hashed").hidden = !o.hashed;
  $("routes-body").replaceChildren();
  drawRoutes();
}

// takeStats adds a bar to every route: what has ended since the last event, by the second.
function takeStats(s) {
  const seconds = statsAt ? (s.at - statsAt) / 1000 : 0;
  const figures = new Map(s.routes.map((f) => [f[0], f]));
  for (const name of figures.keys()) {
    if (!routes.has(name)) routes.set(name, newRoute(name, name === "" ? "no route takes these" : "", []));
  }
  for (const r of routes.values()) {
    const f = figures.get(r.name);
    const counts = f ? f.slice(6) : overview.outcomes.map(() => 0);
    if (f) [r.rate, r.errors, r.p50, r.p95, r.p99] = f.slice(1, 6);
    else r.rate = r.errors = r.p50 = r.p95 = r.p99 = 0;
    if (seconds > 0) {
      let all = 0, failed = 0;
      counts.forEach((n, i) => {
        const more = Math.max(0, n - (r.counts ? r.counts[i] : 0));
        all += more;
        if (overview.failures.includes(i)) failed += more;
      });
      r.bars.push(all / seconds);
      r.failed.push(failed / seconds);
      if (r.bars.length > KEPT) { r.bars.shift(); r.failed.shift(); }
    }
    r.counts = counts;
  }
  statsAt = s.at;
  drawRoutes();
  drawTiles();
}

const orders = {
  rate: (a, b) => b.rate - a.rate,
  errors: (a, b) => b.rate * b.errors - a.rate * a.errors || b.rate - a.rate,
  p99: (a, b) => b.p99 - a.p99,
};

function drawRoutes() {
  const wanted = $("routes-filter").value.toLowerCase();
  let list = [...routes.values()].filter((r) => (r.name + " " + r.pattern).toLowerCase().includes(wanted));
  const order = orders[$("routes-order").value];
  if (order) list.sort(order);
  const count = list.length;
  if (!showAll) list = list.slice(0, SHOWN);
  const more = count > SHOWN;
  $("routes-more").hidden = !more;
  setText($("routes-count"), `${list.length} of ${count} routes`);
  setText($("routes-all"), showAll ? `Show the first ${SHOWN}` : "Show all");
  const body = $("routes-body");
  const rows = list.map((r) => { drawRoute(r); return r.row; });
  if (rows.length !== body.children.length || rows.some((row, i) => row !== body.children[i])) body.replaceChildren(...rows);
}

function drawRoute(r) {
  if (!r.row) r.row = newRow(r);
  const c = r.row.cells;
  setText(c[2], number(r.rate) + "/s");
  setText(c[3], percent(r.errors));
  c[3].classList.toggle("bad", r.errors > 0);
  setText(c[4], duration(r.p50));
  setText(c[5], duration(r.p95));
  setText(c[6], duration(r.p99));
  const rest = [];
  (r.counts || []).forEach((n, i) => { if (i > 0 && n > 0) rest.push(`${n} ${overview.outcomes[i].replaceAll("_", " ")}`); });
  setText(r.row.querySelector(".outcomes"), rest.join(", "));
  const top = Math.max(1, ...r.bars);
  r.row.querySelector(".rate").setAttribute("d", bars(r.bars, top));
  r.row.querySelector(".errors").setAttribute("d", bars(r.failed, top));
}

// bars draws the values from the right, as lines from the ground.
function bars(values, top) {
  let d = "";
  values.forEach((v, i) => {
    if (v > 0) d += `M${(KEPT - values.length + i) * 3 + 1.5} 29V${(29 - Math.max(1.5, v / top * 27)).toFixed(1)}`;
  });
  return d || "M0 0";
}

function newRow(r) {
  const head = el("th", {scope: "row", role: "rowheader", class: "name"}, r.name === "" ? "(none)" : r.name);
  if (r.pattern !== r.name && r.pattern !== "") head.append(el("span", {class: "sub mono"}, r.pattern));
  if (r.match.length) head.append(el("span", {class: "sub"}, "if " + r.match.join(", ")));
  head.append(el("span", {class: "sub outcomes"}));
  const graph = svg("svg", {class: "spark", viewBox: "0 0 180 30", preserveAspectRatio: "none", "aria-hidden": "true"},
    svg("line", {x1: 0, x2: 180, y1: 29.5, y2: 29.5}), svg("path", {class: "rate"}), svg("path", {class: "errors"}));
  const cell = (label) => el("td", {class: "num", role: "cell", "data-label": label});
  return el("tr", {role: "row", "data-route": r.name}, head, el("td", {class: "graph", role: "cell"}, graph),
    cell("Rate"), cell("Errors"), cell("p50"), cell("p95"), cell("p99"));
}

// ── tiles

let pools = {upstreams: [], circuits: []};

function drawTiles() {
  const all = [...routes.values()];
  const rate = all.reduce((sum, r) => sum + r.rate, 0);
  const failed = all.reduce((sum, r) => sum + r.rate * r.errors, 0);
  const targets = pools.upstreams.flatMap((u) => u.targets);
  const up = targets.filter((t) => t.healthy).length;
  const closed = pools.circuits.filter((c) => c.state === "closed").length;
  const tiles = [];
  if (overview.stats) {
    tiles.push(["Requests", number(rate) + "/s", false], ["Errors", percent(rate > 0 ? failed / rate : 0), failed > 0],
      ["Slowest p99", duration(Math.max(0, ...all.map((r) => r.p99))), false]);
  }
  if (targets.length) tiles.push(["Targets up", `${up} of ${targets.length}`, up < targets.length]);
  if (pools.circuits.length) tiles.push(["Circuits closed", `${closed} of ${pools.circuits.length}`, closed < pools.circuits.length]);
  const list = $("tiles");
  list.hidden = tiles.length === 0;
  if (list.children.length !== tiles.length) list.replaceChildren(...tiles.map(() => el("div", {}, el("dt"), el("dd"))));
  tiles.forEach(([name, value, bad], i) => {
    setText(list.children[i].children[0], name);
    setText(list.children[i].children[1], value);
    list.children[i].classList.toggle("bad", bad);
  });
}

// ── upstreams and circuits

// cards keeps one card for each item, so that an open list stays open.
function cards(parent, items, draw) {
  while (parent.children.length > items.length) parent.lastChild.remove();
  items.forEach((item, i) => {
    let card = parent.children[i];
    if (!card) {
      card = el("div", {class: "card"}, el("div", {class: "top"}, el("h3"), el("span", {class: "state"})));
      parent.append(card);
    }
    setText(card.querySelector("h3"), item.name);
    draw(card, item);
  });
}

function setState(card, state, text) {
  const e = card.querySelector(".state");
  e.className = "state " + state;
  setText(e, text);
}

function takeState(s) {
  tellChanges(pools.circuits, s.circuits);
  pools = s;
  $("upstreams-section").hidden = s.upstreams.length === 0;
  $("circuits-section").hidden = s.circuits.length === 0;
  cards($("upstreams"), s.upstreams, drawUpstream);
  drawCircuits();
  drawTiles();
}

function drawUpstream(card, u) {
  const up = u.targets.filter((t) => t.healthy).length;
  setState(card, up === u.targets.length && up > 0 ? "up" : "out", `${up} of ${u.targets.length} up`);
  const list = el("ul", {class: "list"}, ...u.targets.map((t) => {
    const what = t.healthy ? "up" : "out: " + t.reason;
    const line = el("li", {}, el("span", {class: "mono"}, t.url),
      el("span", {class: t.healthy ? "quiet" : "bad-text"}, `${what} · ${t.pending} in flight` + (t.weight > 1 ? ` · weight ${t.weight}` : "")));
    return line;
  }));
  const old = card.querySelector("ul");
  if (!old) card.append(list);
  else if (!old.isEqualNode(list)) old.replaceWith(list);
}

// tellChanges says to screen readers what the colours say.
function tellChanges(before, now) {
  const states = new Map(before.map((c) => [c.name, c.state]));
  for (const c of now) {
    if (states.has(c.name) && states.get(c.name) !== c.state) setText($("news"), `Circuit ${c.name} is ${c.state}.`);
  }
}

let skew = 0; // the gateway's clock minus this one

function drawCircuits() {
  const now = Date.now() + skew;
  cards($("circuits"), pools.circuits, (card, c) => {
    let state = c.state, text = c.state;
    if (c.state === "open") {
      const left = Math.ceil((c.until - now) / 1000);
      if (left > 0) text = `open, tried again in ${left} s`;
      else { state = "due"; text = "open, the next request is a probe"; }
    }
    setState(card, state, text);
    drawBand(card, c, now);
    drawChanges(card, c);
  });
}

function drawBand(card, c, now) {
  let band = card.querySelector("svg");
  if (!band) {
    band = svg("svg", {class: "band", viewBox: "0 0 300 10", preserveAspectRatio: "none", "aria-hidden": "true"});
    card.append(band);
  }
  const x = (at) => Math.max(0, 300 * (1 - (now - at) / BAND));
  const parts = [];
  let from = 0, state = c.changes.length && c.changes.length >= 32 ? "" : "closed";
  for (const change of [...c.changes, {at: now, to: ""}]) {
    const to = Math.min(300, x(change.at));
    if (state && to > from) parts.push(svg("rect", {class: state, x: from.toFixed(2), y: 0, height: 10, width: Math.max(to - from, .8).toFixed(2)}));
    from = to;
    state = change.to;
  }
  band.replaceChildren(...parts);
}

function drawChanges(card, c) {
  let details = card.querySelector("details");
  if (!details) {
    details = el("details", {}, el("summary"), el("ol", {class: "list"}));
    card.append(details);
  }
  details.hidden = c.changes.length === 0;
  const last = c.changes[c.changes.length - 1];
  if (!last || details.dataset.last === String(last.at) + last.to) return;
  details.dataset.last = String(last.at) + last.to;
  setText(details.firstChild, c.changes.length === 1 ? "1 change" : `Last ${c.changes.length} changes`);
  details.lastChild.replaceChildren(...c.changes.toReversed().map((change) =>
    el("li", {}, el("span", {}, change.to + (change.tripped ? " (tripped)" : "")), el("time", {class: "quiet"}, clock(change.at)))));
}

// ── limiters

function takeLimiters(limiters) {
  $("limits-section").hidden = limiters.length === 0;
  cards($("limits"), limiters, (card, l) => {
    const full = l.busy.length ? l.busy[0].spent : 0;
    setState(card, full >= 1 ? "open" : full >= 0.8 ? "half-open" : "closed", l.keys < 0 ? `${percent(full)} at most` : l.keys === 1 ? "1 key" : `${l.keys} keys`);
    const list = el("ol", {class: "list"}, ...l.busy.map((k) => {
      const fill = el("div");
      fill.style.width = Math.min(100, k.spent * 100) + "%";
      return el("li", {}, el("span", {class: "mono"}, k.key === "" ? "(empty)" : k.key), el("span", {}, percent(k.spent) + " spent"),
        el("div", {class: k.spent >= 0.995 ? "meter full" : "meter", "aria-hidden": "true"}, fill));
    }));
    if (l.busy.length === 0) list.append(el("li", {class: "quiet"}, "No key has spent anything."));
    const old = card.querySelector("ol");
    if (old) old.replaceWith(list);
    else card.append(list);
  });
}

// ── explain

let asking = null; // the question under way

async function explain() {
  if (asking) asking.abort();
  const mine = asking = new AbortController();
  const query = new URLSearchParams({method: $("explain-method").value.trim(), host: $("explain-host").value.trim(), path: $("explain-path").value.trim()});
  for (const line of $("explain-headers").value.split("\n")) if (line.trim()) query.append("header", line);
  const out = $("explained");
  try {
    const res = await fetch("explain?" + query, {signal: mine.signal, headers: {Accept: "application/json"}});
    const answer = await res.json();
    if (!res.ok) throw new Error(answer.detail || answer.title || "The gateway answered " + res.status + ".");
    out.replaceChildren(...explained(answer));
  } catch (err) {
    if (mine.signal.aborted) return;
    out.replaceChildren(el("p", {class: "answer off"}, err instanceof TypeError || err instanceof SyntaxError ? "The gateway did not answer." : err.message));
  }
}

function explained(x) {
  let text = `${x.status} ${x.statusText}`;
  if (x.route) text += ": " + x.route.name;
  else if (x.reason) text += ": the path has " + x.reason;
  else if (x.location) text += ": to " + x.location;
  else if (x.allow) text += ": allowed are " + x.allow.join(", ");
  const parts = [el("p", {class: "answer " + (x.status === 200 ? "good" : "off"), id: "explain-answer"}, text)];
  const values = Object.entries(x.pathValues || {});
  if (values.length) {
    parts.push(el("ul", {class: "values", "aria-label": "Path values"}, ...values.map(([name, value]) => el("li", {class: "mono"}, `${name} = ${JSON.stringify(value)}`))));
  }
  const near = x.candidates.filter((c) => c.reason !== "path" && c.reason !== "host");
  const far = x.candidates.filter((c) => c.reason === "path" || c.reason === "host");
  if (near.length) parts.push(candidates(near, "Routes whose host and path match, in the order in which they are tried"));
  if (far.length || x.more) {
    const n = far.length + x.more;
    parts.push(el("details", {}, el("summary", {}, n === 1 ? "1 route of another path or host" : `${n} routes of another path or host`),
      candidates(far, "Routes of another path or host"), ...(x.more ? [el("p", {class: "quiet"}, `${x.more} more are not listed.`)] : [])));
  }
  return parts;
}

function candidates(list, caption) {
  const row = (c) => el("tr", c.matched ? {class: "taken"} : {},
    el("th", {scope: "row", class: "name"}, c.name, ...(c.pattern !== c.name ? [el("span", {class: "sub mono narrow"}, c.pattern)] : [])),
    el("td", {class: "mono"}, c.pattern), el("td", {}, c.matched ? "✓ taken" : "✗ " + c.reason));
  return el("table", {}, el("caption", {class: "hidden"}, caption),
    el("thead", {}, el("tr", {}, el("th", {scope: "col"}, "Route"), el("th", {scope: "col"}, "Pattern"), el("th", {scope: "col"}, "Outcome"))),
    el("tbody", {}, ...list.map(row)));
}

// ── the stream

let source = null, lastHeard = 0, lastTry = 0, retry = 0;

function setLink(state, text) {
  $("link").className = "pill " + state;
  document.body.classList.toggle("lost-link", state === "lost");
  setText($("link-text"), text);
}

function heard() {
  lastHeard = Date.now();
  setLink("live", "Live");
}

function connect() {
  disconnect();
  lastTry = Date.now();
  const s = source = new EventSource("events");
  const on = (name, f) => s.addEventListener(name, (e) => {
    heard();
    f(JSON.parse(e.data));
  });
  on("routes", takeOverview);
  on("state", takeState);
  on("stats", (v) => { skew = v.at - Date.now(); takeStats(v); });
  on("limiters", takeLimiters);
  on("beat", () => {});
  s.addEventListener("error", () => {
    // After an answer other than 200, such as 401 or 503, the browser does not try again by itself.
    lost();
    if (s.readyState === EventSource.CLOSED) retry = setTimeout(connect, 2000);
  });
}

function disconnect() {
  clearTimeout(retry);
  if (source) source.close();
  source = null;
}

// lost is not said of a stream that the gateway has ended in order, and that is open again within a second.
function lost() {
  if (Date.now() - lastHeard < 1500) return;
  setLink("lost", lastHeard ? `Connection lost. Figures of ${clock(lastHeard)}; trying again…` : "No connection to the gateway; trying again…");
}

setInterval(() => {
  if (document.hidden) return;
  drawCircuits();
  if (Date.now() - lastHeard < 3000) return;
  lost();
  // A connection that died without a word, such as on a phone that changed its network.
  if (Date.now() - Math.max(lastHeard, lastTry) > 15000) connect();
}, 1000);

// A page that nobody sees lets the gateway rest.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) { disconnect(); setLink("wait", "Paused"); }
  else if (!source) connect();
});

$("explain").addEventListener("submit", (e) => { e.preventDefault(); explain(); });
$("routes-filter").addEventListener("input", drawRoutes);
$("routes-order").addEventListener("change", drawRoutes);
$("routes-all").addEventListener("click", () => { showAll = !showAll; drawRoutes(); });
connect();
