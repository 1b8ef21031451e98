// The arena's page draws what the server says. Rules and names may be anything, so they are written as text.
"use strict";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const WINDOW = 5000; // milliseconds of the fixed window, aligned to the epoch
const TRAIL = 100; // points of a lane's history: ten seconds

function el(tag, attributes, ...children) {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) e.setAttribute(name, value);
  e.append(...children);
  return e;
}

function setText(e, text) {
  if (e.textContent !== text) e.textContent = text;
}

async function post(path, body) {
  try {
    return await fetch(path, {method: "POST", body});
  } catch {
    return null; // the page says that the connection is lost
  }
}

// ── limits

const lanes = [];

function newLane(l) {
  const slots = el("div", {class: "slots", "aria-hidden": "true"});
  for (let i = 0; i < l.Limit; i++) slots.append(el("i", {}, el("b")));
  const trail = document.createElementNS(SVG, "svg");
  trail.setAttribute("viewBox", "0 0 300 46");
  trail.setAttribute("preserveAspectRatio", "none");
  trail.setAttribute("class", "trail");
  trail.setAttribute("aria-hidden", "true");
  for (const name of ["passed", "refused"]) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", name);
    trail.append(path);
  }
  const card = el("div", {class: "lane " + l.Name.split(" ")[0]}, el("h3", {}, l.Name), slots,
    el("div", {class: "window", "aria-hidden": "true"}, el("div")), el("p", {class: "what"}), el("p", {class: "sum"}), trail);
  $("lanes").append(card);
  return {card, passed: [], refused: [], before: l};
}

function drawLane(lane, l, at) {
  const leaky = l.Name === "leaky bucket", fixed = l.Name === "fixed window";
  const full = leaky ? l.Limit - l.Left : l.Left; // a leaky bucket fills, the others empty
  [...lane.card.querySelectorAll(".slots b")].forEach((b, i) => { b.style.height = Math.max(0, Math.min(1, full - i)) * 100 + "%"; });
  const bar = lane.card.querySelector(".window");
  bar.style.visibility = fixed ? "visible" : "hidden";
  bar.firstChild.style.width = at % WINDOW / WINDOW * 100 + "%";
  const left = Math.floor(l.Left + 1e-6);
  setText(lane.card.querySelector(".what"), leaky ? `${l.Waiting} in the queue, one leaves every 500 ms` :
    fixed ? `${left} left until the window ends in ${((WINDOW - at % WINDOW) / 1000).toFixed(1)} s` : `${left} tokens, two more a second`);
  setText(lane.card.querySelector(".sum"), `${l.Passed} passed, ${l.Refused} refused`);
  for (const [name, now, before] of [["passed", l.Passed, lane.before.Passed], ["refused", l.Refused, lane.before.Refused]]) {
    const list = lane[name];
    list.push(Math.max(0, now - before));
    if (list.length > TRAIL) list.shift();
  }
  lane.before = l;
  const top = 15;
  const line = (list, from, sign) => list.map((n, i) => n ? `M${(TRAIL - list.length + i) * 3 + 1.5} ${from}v${-sign * Math.max(2, Math.min(n, top) / top * 22)}` : "").join("") || "M0 0";
  lane.card.querySelector(".passed").setAttribute("d", line(lane.passed, 24, 1));
  lane.card.querySelector(".refused").setAttribute("d", line(lane.refused, 24, -1));
}

for (const b of document.querySelectorAll("[data-fire]")) b.addEventListener("click", () => post("fire?n=" + b.dataset.fire));

function repeat(button, every, act) {
  let timer = 0;
  button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", on);
    clearInterval(timer);
    if (on) timer = setInterval(act, every);
  });
}
repeat($("stream"), 333, () => post("fire?n=1"));
repeat($("calling"), 500, () => post("call?n=1"));

// ── the circuit

let lastCalls = "";

function drawCircuit(c, at) {
  for (const box of document.querySelectorAll("#states > div")) box.classList.toggle("on", box.dataset.state === c.State);
  setText($("left"), c.State === "open" ? `tried again in ${Math.max(0, (c.Until - at) / 1000).toFixed(1)} s` : "calls fail at once");
  const radio = document.querySelector(`input[value=${c.Mode}]`);
  if (radio && !radio.checked) radio.checked = true;
  const changes = c.Changes.slice(-4).map((x) => x.To).join(" → ");
  setText($("circuit-said"), changes ? "Last changes: " + changes : "It has never opened.");
  const calls = JSON.stringify(c.Calls);
  if (calls === lastCalls) return;
  lastCalls = calls;
  $("calls").replaceChildren(...c.Calls.map((call) => el("li", {class: !call.Asked ? "spared" : call.Status >= 500 ? "failed" : "passed"},
    String(call.Status), el("br"), call.Took < 1 ? "< 1 ms" : Math.round(call.Took) + " ms", el("br"), call.Asked ? "asked" : "spared")));
}

for (const b of document.querySelectorAll("[data-call]")) b.addEventListener("click", () => post("call?n=" + b.dataset.call));
for (const b of document.querySelectorAll("[name=mode]")) b.addEventListener("change", () => post("backend?mode=" + b.value));

// ── routing

let asked = 0;

async function ask() {
  const mine = ++asked;
  const res = await post("route", JSON.stringify({Rules: $("rules").value, Method: $("method").value, URL: $("url").value}));
  if (mine !== asked) return;
  if (!res || !res.ok) {
    $("verdict").replaceChildren(el("p", {class: "problem"}, res ? await res.text() : "The server did not answer."));
    return;
  }
  $("verdict").replaceChildren(...verdict(await res.json()));
}

const why = {path: "another path", host: "another host", method: "another method", precedence: "the other rule is more specific"};

function verdict(v) {
  if (v.Problem) return [el("h3", {}, v.Problem.includes("panic:") ? "The program stops at setup, before it serves" : "No answer"), el("p", {class: "problem"}, v.Problem)];
  let text = `${v.Status} ${v.StatusText}`;
  if (v.Service) text += " from " + v.Service;
  else if (v.Reason) text += ": the path has " + v.Reason;
  else if (v.Location) text += ": to " + v.Location;
  else if (v.Allow) text += ": allowed are " + v.Allow.join(", ");
  const parts = [el("p", {class: "answer " + (v.Service ? "good" : "off")}, text)];
  const values = Object.entries(v.PathValues || {});
  if (values.length) parts.push(el("p", {class: "mono"}, values.map(([name, value]) => `${name} = ${JSON.stringify(value)}`).join(", ")));
  if (v.Candidates) {
    parts.push(el("table", {}, el("thead", {}, el("tr", {}, el("th", {scope: "col"}, "Rule"), el("th", {scope: "col"}, "Service"), el("th", {scope: "col"}, "Why not"))),
      el("tbody", {}, ...v.Candidates.map((c) => el("tr", c.Matched ? {class: "taken"} : {},
        el("td", {class: "mono"}, c.Pattern), el("td", {}, c.Service), el("td", {}, c.Matched ? "✓ takes it" : why[c.Reason] || c.Reason))))));
  }
  return parts;
}

let typing = 0;
for (const id of ["rules", "method", "url"]) {
  $(id).addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(ask, 150); });
}
$("routing").addEventListener("submit", (e) => { e.preventDefault(); ask(); });
for (const b of document.querySelectorAll("[data-try]")) {
  b.addEventListener("click", () => { [$("method").value, $("url").value] = b.dataset.try.split(" "); ask(); });
}
$("conflict").addEventListener("click", () => { $("rules").value = "/users/{id} users\n/{kind}/7 sevens"; ask(); });

// ── the stream

const source = new EventSource("events");
source.addEventListener("message", (e) => {
  const s = JSON.parse(e.data);
  $("link").className = "pill live";
  setText($("link"), "Live");
  s.Lanes.forEach((l, i) => {
    if (!lanes[i]) lanes[i] = newLane(l);
    drawLane(lanes[i], l, s.At);
  });
  drawCircuit(s.Circuit, s.At);
});
source.addEventListener("error", () => {
  $("link").className = "pill lost";
  setText($("link"), "Connection lost; trying again…");
});
ask();
