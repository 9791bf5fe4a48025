// The status page: asks the API of the agent that serves it, and follows its events. No library, no build step.
import { capacityPath, lives, stateAfter } from "./timeline.js";

const LONGEST_MS = 3600_000; // the time that is drawn: an hour, or as long as there are events, but
const SHORTEST_MS = 300_000;
const SLOW_MS = 10_000; // conditions and disk figures change without an event
const PULL_MS = 1000; // while an image is on its way
const SHOWN_EVENTS = 100;

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

function rows(id, items, cells, empty) {
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
    node("code", {}, short(p.rollout?.serving)), p.rollout ? rollout(p.rollout) : "",
  ], "No pools are assigned.");
  rows("images", host.images, (i) => [
    node("code", { title: i.digest }, short(i.digest)), imageState(i), i.state === "here" ? size(i.allocated_bytes) : "",
    i.pools.join(", "), node("code", {}, i.references.join(" ")),
  ], "No images are here.");
}

function rollout(r) {
  const target = r.phase === "serving" || !r.target ? "" : ` ${short(r.target)}`;
  return node("span", { title: r.reason }, state(r.phase), target);
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
  const items = problems.map(([what, why]) => node("li", { class: "problem" }, node("strong", {}, what), `: ${why}`));
  byId("problems").querySelector("ul").replaceChildren(...items);
  byId("problems").hidden = items.length === 0;
}

function showVms(vms) {
  rows("vms", vms, (vm) => [
    state(vm.state), node("code", {}, vm.name), since(vm.since), since(vm.created_at),
    vm.failure ? state("failed", `${vm.failure.cause}: ${vm.failure.reason}`)
      : vm.lease ? node("span", {}, `${vm.lease.holder}, `, until(vm.lease.expires_at), " left") : "",
  ], "No VMs are here.");
}

function eventLine(event) {
  const about = [event.vm, event.image && short(event.image), event.lease && `lease ${event.lease}`, event.cause, event.detail];
  const at = new Date(event.at);
  return node("li", {}, node("time", { datetime: event.at, title: at.toLocaleString() }, at.toLocaleTimeString()),
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
  const svg = (tag, attributes, ...inner) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...inner);
    return element;
  };
  const x = (at) => (1000 * (at - begin)) / (end - begin);
  byId("lives").setAttribute("viewBox", `0 0 1000 ${Math.max(1, found.length) * 14}`);
  byId("lives").replaceChildren(...found.flatMap((life, row) => life.parts.map((part) =>
    svg("rect", { x: x(part.from), y: row * 14 + 2, width: Math.max(1.5, x(part.to) - x(part.from)), height: 10, "data-state": part.state },
      svg("title", {}, `${life.vm}: ${part.state} for ${span(part.to - part.from)}`)))));
  byId("lives-text").textContent = `${found.length} VMs lived in the last ${span(end - begin)}.`;
  const total = seen.host?.slots.total ?? 1;
  const { path, peak, top } = capacityPath(found, total, begin, end);
  byId("capacity").setAttribute("viewBox", "0 0 1000 100");
  byId("capacity").replaceChildren(svg("line", { x1: 0, x2: 1000, y1: top, y2: top }), svg("path", { d: path }));
  byId("capacity-text").textContent = `At most ${peak} of ${total} slots were in use by VMs of this agent. The dashed line is all slots.`;
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

// Look at the host and its VMs, once at a time; a wish that comes meanwhile is granted right after.
async function look() {
  if (asking) { again = true; return; }
  asking = (async () => {
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
  })();
  try { await asking; } catch { line("lost", "the agent does not answer"); } finally { asking = null; }
  if (again) { again = false; await look(); }
}

function line(name, text) {
  if (byId("line").dataset.state === name) return;
  byId("line").dataset.state = name;
  byId("line").textContent = text;
}

async function recall() {
  const { last } = await (await ask("v1/events?limit=1")).json();
  const page = await (await ask(`v1/events?after=${Math.max(0, last - 1000)}&limit=1000`)).json();
  seen.events = page.events;
  seen.last = page.next;
  showEvents();
}

function take(message) {
  const event = JSON.parse(message.data);
  if (event.number <= seen.last) return;
  seen.last = event.number;
  seen.events = [...seen.events.slice(-999), event];
  byId("events").prepend(eventLine(event));
  while (byId("events").children.length > SHOWN_EVENTS) byId("events").lastChild.remove();
  look();
}

// The browser's own EventSource gives up on some errors and cannot begin at a number, so lines are read here.
async function follow() {
  const response = await ask(`v1/events?after=${seen.last}`, { Accept: "text/event-stream" });
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
    } catch { /* told by the line below */ }
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
setInterval(() => { if (document.visibilityState === "visible" && byId("line").dataset.state === "live") look(); }, SLOW_MS);
setInterval(() => { if (seen.host?.images.some((image) => image.progress)) look(); }, PULL_MS);
live();
