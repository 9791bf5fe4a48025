// The status page: asks the API of the agent that serves it, and follows its events. No library, no build step.
import { capacity, lives, stateAfter, ticks } from "./timeline.js";

const LONGEST_MS = 3600_000; // the time that is drawn: an hour, or as long as there are events, but
const SHORTEST_MS = 300_000;
const SLOW_MS = 10_000; // conditions and disk figures change without an event
const PULL_MS = 1000; // while an image is on its way
const APART_MS = 400; // between two looks, however much happens
const SHOWN_EVENTS = 100;
const SHOWN_LIVES = 60;
const PAGE = 1000;
const KEPT_EVENTS = 10_000; // far more than happens in an hour on one host

const byId = (id) => document.getElementById(id);
const seen = { host: null, vms: [], events: [], etag: "", skewMs: 0, last: 0 };
const now = () => Date.now() - seen.skewMs; // the host's clock, as far as its Date header tells

function node(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

const state = (name, text = name) => node("span", { "data-state": name }, text);
// Text with its digests cut to what tells versions apart. The stream of events leaves out what is empty.
const brief = (text) => (text ?? "").replace(/(sha256[:-])?([0-9a-f]{12})[0-9a-f]{52}/g, "$2");
const vmName = (name) => node("code", { title: name }, node("span", { class: "wide" }, name.slice(0, -8)), name.slice(-8));
const short = (digest) => (digest ? digest.replace("sha256:", "").slice(0, 12) : "–");

export function span(milliseconds) {
  const s = Math.max(0, Math.floor(milliseconds / 1000));
  if (s >= 86400) return `${Math.floor(s / 86400)}d ${Math.floor((s % 86400) / 3600)}h`;
  if (s >= 3600) return `${Math.floor(s / 3600)}h ${Math.floor((s % 3600) / 60)}m`;
  return s >= 60 ? `${Math.floor(s / 60)}m ${s % 60}s` : `${s}s`;
}

export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let index = 0;
  while (bytes >= 1024 && index < units.length - 1) { bytes /= 1024; index += 1; }
  return `${bytes.toFixed(index && bytes < 100 ? 1 : 0)} ${units[index]}`;
}

// A span of time that grows on its own: rewritten every second from its attributes, not from the network.
const since = (at) => node("time", { datetime: at, "data-since": at }, span(now() - Date.parse(at)));
const until = (at) => node("time", { datetime: at, "data-until": at }, span(Date.parse(at) - now()));

function tick() {
  for (const e of document.querySelectorAll("[data-since]")) e.textContent = span(now() - Date.parse(e.dataset.since));
  for (const e of document.querySelectorAll("[data-until]")) e.textContent = span(Date.parse(e.dataset.until) - now());
}

const drawn = new Map();

// Whether what is to be shown in a place is other than what is there: unchanged places keep focus, selection and silence.
function changed(place, content) {
  const text = JSON.stringify(content);
  if (drawn.get(place) === text) return false;
  drawn.set(place, text);
  return true;
}

function rows(id, items, cells, empty) {
  if (!changed(id, items)) return;
  const body = byId(id).tBodies[0];
  const columns = byId(id).tHead.rows[0].cells.length;
  const made = items.map((item) => node("tr", {}, ...cells(item).map((cell) => node("td", {}, cell ?? ""))));
  body.replaceChildren(...(made.length ? made : [node("tr", {}, node("td", { class: "empty", colspan: columns }, empty))]));
}

function showHost(host) {
  document.title = `${host.host.name} · Hearth`;
  byId("host").textContent = host.host.name;
  const v = host.versions;
  byId("versions").textContent = `hearth ${v.agent}, ${v.hypervisor} ${v.hypervisor_version}`.trim() + `, ${host.host.os} ${host.host.arch}`;
  const kinds = ["ready", "leased", "starting", "stopping", "foreign", "free"];
  byId("slots").replaceChildren(...kinds.flatMap((kind) =>
    Array.from({ length: Math.min(64, host.slots[kind]) }, () => node("li", { "data-state": kind }, kind))));
  const room = (title, amounts, text) => [
    node("dt", {}, title),
    node("dd", {}, `${text(amounts.free)} of ${text(amounts.allocatable)} free`,
      node("meter", { min: 0, max: amounts.allocatable, value: amounts.used, "aria-label": `${title} used` })),
  ];
  byId("room").replaceChildren(...[
    room("Processors", host.cpus, (n) => n),
    room("Memory", host.memory_mib, (n) => size(n * 2 ** 20)),
    room("Disk", host.disk_bytes, size),
  ].map((pair) => node("div", {}, ...pair)));
  showProblems(host);
  rows("pools", host.pools, (p) => [
    p.name, `${p.ready} of ${p.warm}`, p.standby, p.leased, p.starting, p.waiting, `${p.startable.count} (${p.startable.limit})`,
    node("code", { title: p.image }, short(p.rollout?.serving)),
  ], "No pools are assigned.");
  rows("rollouts", host.pools.filter((p) => p.rollout), ({ name, rollout: r }) => [
    name, state(r.phase), r.since ? since(r.since) : "", node("code", {}, short(r.serving)),
    node("code", {}, short(r.target)), node("code", {}, short(r.previous)), brief(r.reason) || "–",
  ], "No versions are rolled out.");
  showConditions(host.conditions);
  rows("images", host.images, (i) => [
    node("code", { title: i.digest }, short(i.digest)), imageState(i), i.state === "present" ? size(i.allocated_bytes) : "–",
    i.pools.join(", ") || "–", node("code", {}, i.references.join(" ")),
  ], "This host has no images.");
}

function showConditions(conditions) {
  if (!changed("conditions", conditions)) return;
  byId("conditions").replaceChildren(...conditions.map((c) => node("li", { title: c.message || c.reason },
    state(c.problem ? "failed" : "fine", c.type), ` ${c.status}`, c.since ? node("span", { class: "soft" }, " for ", since(c.since)) : "")));
}

function imageState(image) {
  const p = image.progress;
  if (!p) return state(image.state, image.error ? `${image.state}: ${image.error}` : image.state);
  const percent = Math.floor((100 * p.done_bytes) / Math.max(1, p.total_bytes));
  const eta = p.eta_s === null ? "" : `, ${span(p.eta_s * 1000)} left`;
  return node("span", {}, state("pulling", `${percent} % at ${size(p.rate_bytes_per_s)}/s${eta}`),
    node("progress", { max: Math.max(1, p.total_bytes), value: p.done_bytes, "aria-label": "pulled" }));
}

function showProblems(host) {
  const problems = [
    ...(host.draining ? [["Draining", "no new VMs or leases"]] : []),
    ...host.conditions.filter((c) => c.problem && c.type !== "Draining").map((c) => [c.type, c.message || c.reason]),
    ...host.pools.filter((p) => p.error).map((p) => [`Pool ${p.name}`, p.error]),
    ...(host.assignment.error ? [["Assignment", host.assignment.error]] : []),
  ];
  if (!changed("problems", problems)) return;
  const items = problems.map(([what, why]) => node("li", { class: "problem" }, node("strong", {}, what), `: ${why}`));
  byId("problems").querySelector("ul").replaceChildren(...items);
  byId("problems").hidden = items.length === 0;
}

function showVms(vms) {
  rows("vms", vms, (vm) => [
    state(vm.state), vmName(vm.name), since(vm.since), since(vm.created_at),
    vm.failure ? state("failed", `${vm.failure.cause}: ${vm.failure.reason}`)
      : vm.lease ? node("span", {}, `${vm.lease.holder}, `, until(vm.lease.expires_at), " left") : "–",
  ], "This host has no VMs.");
}

function eventLine(event) {
  const about = [event.vm, event.image && short(event.image), event.lease && `lease ${event.lease}`, event.cause, brief(event.detail)];
  const at = new Date(event.at);
  return node("li", {}, node("time", { datetime: event.at, title: at.toLocaleString() }, at.toLocaleTimeString([], { hourCycle: "h23" })),
    state(stateAfter(event.kind) ?? "", event.kind), node("span", {}, about.filter(Boolean).join(" · ")));
}

function showEvents() {
  byId("events").replaceChildren(...seen.events.slice(-SHOWN_EVENTS).reverse().map(eventLine));
  drawTime();
}

function drawTime() {
  const end = now();
  const earliest = seen.events.length ? Date.parse(seen.events[0].at) : end;
  const begin = Math.max(end - LONGEST_MS, Math.min(earliest, end - SHORTEST_MS));
  const found = lives(seen.events, seen.vms, begin, end);
  const share = (at) => `${(100 * (at - begin)) / (end - begin)}%`;
  const placed = (element, from, to) => {
    element.style.left = share(from); // by the object model: the policy refuses style attributes
    if (to !== undefined) element.style.width = `max(2px, ${(100 * (to - from)) / (end - begin)}%)`;
    return element;
  };
  byId("lives").replaceChildren(...found.slice(-SHOWN_LIVES).reverse().map(({ vm, parts }) => {
    const told = parts.map((part) => `${part.state} ${span(part.to - part.from)}`).join(", ");
    const bars = parts.map((part) => placed(node("i", { "data-state": part.state }), part.from, part.to));
    return node("li", { title: `${vm}: ${told}` }, node("code", {}, vm.slice(-6)),
      node("span", { class: "track", "aria-hidden": "true" }, ...bars), node("span", { class: "unseen" }, told));
  }));
  const failed = found.filter(({ parts }) => parts.some((part) => part.state === "failed")).length;
  byId("lives-text").textContent = `${found.length} VMs lived in the last ${span(end - begin)}, ${failed} of them failed.`;
  for (const line of document.querySelectorAll(".ticks")) {
    line.replaceChildren(...ticks(begin, end).map((at) => placed(node("time", {}, clock(at)), at)));
  }
  drawCapacity(found, begin, end);
}

const clock = (at) => new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

function drawCapacity(found, begin, end) {
  const total = seen.host?.slots.total ?? 1;
  const { bands, peak, top } = capacity(found, total, begin, end);
  const svg = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  byId("capacity").replaceChildren(
    ...bands.map(({ state: name, path }) => svg("path", { d: path, "data-state": name })),
    svg("line", { x1: 0, x2: 1000, y1: top, y2: top }));
  byId("capacity-text").textContent = `At most ${peak} of ${total} slots were held by VMs of this agent at once. The dashed line is all slots.`;
}

async function ask(path, headers = {}) {
  const token = sessionStorage.getItem("token");
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(path, { headers, cache: "no-store" });
  if (response.status === 401) byId("login").hidden = false;
  if (!response.ok && response.status !== 304) throw new Error(`${path} answered ${response.status}`);
  const date = Date.parse(response.headers.get("Date"));
  if (date && Math.abs(Date.now() - date) > 2000) seen.skewMs = Date.now() - date;
  return response;
}

let asking = null;
let again = false;
let streaming = false;
let looked = -APART_MS;

// Look at the host and its VMs, once at a time; a wish that comes meanwhile is granted right after.
async function look() {
  if (asking) { again = true; return; }
  asking = (async () => {
    await new Promise((resolve) => setTimeout(resolve, looked + APART_MS - performance.now()));
    looked = performance.now();
    const [host, vms] = await Promise.all([
      ask("v1/host", seen.etag ? { "If-None-Match": seen.etag } : {}), ask("v1/vms"),
    ]);
    if (host.status !== 304) {
      seen.host = await host.json();
      seen.etag = host.headers.get("ETag");
      showHost(seen.host);
    }
    seen.vms = (await vms.json()).vms;
    showVms(seen.vms);
    drawTime();
    if (streaming) line("live", "live");
  })();
  try { await asking; } catch { line("lost", "the agent does not answer"); } finally { asking = null; }
  if (again) { again = false; await look(); }
}

function line(name, text) {
  if (byId("line").dataset.state === name) return;
  byId("line").dataset.state = name;
  byId("line").textContent = text;
}

// What happened in the last hour, from the agent's durable record: a page that is loaded anew knows as much as before.
async function recall() {
  const { last } = await (await ask("v1/events?limit=1")).json();
  const found = [];
  for (let first = last; first > 0 && found.length < KEPT_EVENTS; ) {
    const after = Math.max(0, first - PAGE);
    const page = await (await ask(`v1/events?after=${after}&limit=${first - after}`)).json();
    found.unshift(...page.events);
    if (!page.events.length || Date.parse(page.events[0].at) < now() - LONGEST_MS) break;
    first = after;
  }
  seen.events = found;
  seen.last = last;
  showEvents();
}

function take(message) {
  const event = JSON.parse(message.data);
  if (event.number <= seen.last) return;
  seen.last = event.number;
  seen.events = [...seen.events.slice(1 - KEPT_EVENTS), event];
  byId("events").prepend(eventLine(event));
  while (byId("events").children.length > SHOWN_EVENTS) byId("events").lastChild.remove();
  look();
}

// The browser's own EventSource gives up on some errors and cannot begin at a number, so lines are read here.
async function follow() {
  const response = await ask(`v1/events?after=${seen.last}`, { Accept: "text/event-stream" });
  streaming = true;
  line("live", "live");
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "", { value, done } = await reader.read(); !done; { value, done } = await reader.read()) {
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").find((text) => text.startsWith("data: "));
      if (data) take({ data: data.slice(6) });
    }
  }
}

async function live() {
  for (let delay = 500; ; delay = Math.min(delay * 2, 10_000)) {
    try {
      await look();
      await recall();
      delay = 500;
      await follow();
    } catch (error) { console.debug(error); } // and told by the line below
    streaming = false;
    line("lost", "the agent does not answer, trying again");
    await new Promise((resolve) => setTimeout(resolve, delay * (0.5 + Math.random() / 2)));
  }
}

byId("login").addEventListener("submit", (submission) => {
  submission.preventDefault();
  sessionStorage.setItem("token", byId("token").value.trim());
  location.reload();
});
setInterval(tick, 1000);
setInterval(() => { if (document.visibilityState === "visible") drawTime(); }, SLOW_MS / 2);
setInterval(() => { if (document.visibilityState === "visible" && byId("line").dataset.state === "live") look(); }, SLOW_MS);
setInterval(() => { if (seen.host?.images.some((image) => image.progress)) look(); }, PULL_MS);
live();
