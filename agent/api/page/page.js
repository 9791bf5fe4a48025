// The status page: polls the API of the agent that serves it and follows its events. No library, no build step.
import { capacity, stateAfter, ticks, vmTimelines } from "./timeline.js";

// The charts show the time since the first event, between these two limits.
const LONGEST_MS = 3600_000;
const SHORTEST_MS = 300_000;
const REFRESH_MS = 10_000; // conditions and disk figures change without an event
const PULL_REFRESH_MS = 1000; // while an image is pulled
const REFRESH_PAUSE_MS = 400; // between two refreshes, even when many events arrive
const SHOWN_EVENTS = 100;
const SHOWN_TIMELINES = 60;
const PAGE_EVENTS = 1000;
const KEPT_EVENTS = 10_000; // far more than one host emits in an hour

const byId = (id) => document.getElementById(id);
const model = { host: null, vms: [], events: [], etag: "", skewMs: 0, lastEvent: 0 };
const now = () => Date.now() - model.skewMs; // the host's clock, from the Date header of its responses

// Text of guests and clients, with characters escaped that are invisible or change the order of others.
const visible = (text) => String(text).replace(/(?![\n\t])[\p{C}\p{Zl}\p{Zp}]/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);

function node(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.map((child) => (child instanceof Node ? child : visible(child))));
  return element;
}

const state = (name, text = name) => node("span", { "data-state": name }, text);
// The text with each digest cut to 12 digits. An event has no key for an empty text.
const shortenDigests = (text) => (text ?? "").replace(/(sha256[:-])?([0-9a-f]{12})[0-9a-f]{52}/g, "$2");
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

// Durations that updateDurations rewrites every second from the element's attributes, without a request.
const since = (at) => node("time", { datetime: at, "data-since": at }, span(now() - Date.parse(at)));
const until = (at) => node("time", { datetime: at, "data-until": at }, span(Date.parse(at) - now()));

function updateDurations() {
  for (const e of document.querySelectorAll("[data-since]")) e.textContent = span(now() - Date.parse(e.dataset.since));
  for (const e of document.querySelectorAll("[data-until]")) e.textContent = span(Date.parse(e.dataset.until) - now());
}

const shownContent = new Map();

// Remember the content of a part of the page. False if it is unchanged: a part that is not redrawn keeps the focus and
// the selection, and a screen reader stays silent.
function hasChanged(part, content) {
  const text = JSON.stringify(content);
  if (shownContent.get(part) === text) return false;
  shownContent.set(part, text);
  return true;
}

function showRows(id, items, cells, emptyText) {
  if (!hasChanged(id, items)) return;
  const body = byId(id).tBodies[0];
  const columns = byId(id).tHead.rows[0].cells.length;
  const rows = items.map((item) => node("tr", {}, ...cells(item).map((cell) => node("td", {}, cell ?? ""))));
  body.replaceChildren(...(rows.length ? rows : [node("tr", {}, node("td", { class: "empty", colspan: columns }, emptyText))]));
}

function showHost(host) {
  document.title = `${host.host.name} · Hearth`;
  byId("host").textContent = visible(host.host.name);
  const v = host.versions;
  const hypervisor = `${v.hypervisor} ${v.hypervisor_version}`.trim();
  byId("versions").textContent = visible(`hearth ${v.agent}, ${hypervisor}, ${host.host.os} ${host.host.arch}`);
  const states = ["ready", "leased", "starting", "stopping", "foreign", "free"];
  byId("slots").replaceChildren(...states.flatMap((name) =>
    Array.from({ length: Math.min(64, host.slots[name]) }, () => node("li", { "data-state": name }, name))));
  const resource = (title, amounts, text) => [
    node("dt", {}, title),
    node("dd", {}, `${text(amounts.free)} of ${text(amounts.allocatable)} free`,
      node("meter", { min: 0, max: amounts.allocatable, value: amounts.used, "aria-label": `${title} used` })),
  ];
  byId("resources").replaceChildren(...[
    resource("Processors", host.cpus, (n) => n),
    resource("Memory", host.memory_mib, (n) => size(n * 2 ** 20)),
    resource("Disk", host.disk_bytes, size),
  ].map((pair) => node("div", {}, ...pair)));
  showProblems(host);
  showRows("pools", host.pools, (p) => [
    p.name, `${p.ready} of ${p.warm}`, p.standby, p.leased, p.starting, p.waiting, `${p.startable.count} (${p.startable.limit})`,
    node("code", { title: p.image }, short(p.rollout?.serving)),
  ], "No pools are assigned.");
  showRows("rollouts", host.pools.filter((p) => p.rollout), ({ name, rollout: r }) => [
    name, state(r.phase), r.since ? since(r.since) : "", node("code", {}, short(r.serving)),
    node("code", {}, short(r.target)), node("code", {}, short(r.previous)), shortenDigests(r.reason) || "–",
  ], "No pool has a version yet.");
  showConditions(host.conditions);
  showRows("images", host.images, (i) => [
    node("code", { title: i.digest }, short(i.digest)), imageState(i), i.state === "present" ? size(i.allocated_bytes) : "–",
    i.pools.join(", ") || "–", node("code", {}, i.references.join(" ")),
  ], "This host has no images.");
}

function showConditions(conditions) {
  if (!hasChanged("conditions", conditions)) return;
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
  if (!hasChanged("problems", problems)) return;
  const items = problems.map(([subject, reason]) => node("li", { class: "problem" }, node("strong", {}, subject), `: ${reason}`));
  byId("problems").querySelector("ul").replaceChildren(...items);
  byId("problems").hidden = items.length === 0;
}

function showVms(vms) {
  showRows("vms", vms, (vm) => [
    state(vm.state), vmName(vm.name), since(vm.since), since(vm.created_at),
    vm.failure ? state("failed", `${vm.failure.cause}: ${vm.failure.reason}`)
      : vm.lease ? node("span", {}, `${vm.lease.holder}, `, until(vm.lease.expires_at), " left") : "–",
  ], "This host has no VMs.");
}

function eventLine(event) {
  const details = [event.vm, event.image && short(event.image), event.lease && `lease ${event.lease}`, event.cause, shortenDigests(event.detail)];
  const at = new Date(event.at);
  return node("li", {}, node("time", { datetime: event.at, title: at.toLocaleString() }, at.toLocaleTimeString([], { hourCycle: "h23" })),
    state(stateAfter(event.kind) ?? "", event.kind), node("span", {}, details.filter(Boolean).join(" · ")));
}

function showEvents() {
  byId("events").replaceChildren(...model.events.slice(-SHOWN_EVENTS).reverse().map(eventLine));
  drawCharts();
}

function drawCharts() {
  const end = now();
  const earliest = model.events.length ? Date.parse(model.events[0].at) : end;
  const begin = Math.max(end - LONGEST_MS, Math.min(earliest, end - SHORTEST_MS));
  const timelines = vmTimelines(model.events, model.vms, begin, end);
  const percent = (at) => `${(100 * (at - begin)) / (end - begin)}%`;
  const placed = (element, from, to) => {
    element.style.left = percent(from); // set by script because the content security policy refuses style attributes
    if (to !== undefined) element.style.width = `max(2px, ${(100 * (to - from)) / (end - begin)}%)`;
    return element;
  };
  byId("timelines").replaceChildren(...timelines.slice(-SHOWN_TIMELINES).reverse().map(({ vm, parts }) => {
    const text = parts.map((part) => `${part.state} ${span(part.to - part.from)}`).join(", ");
    const bars = parts.map((part) => placed(node("i", { "data-state": part.state }), part.from, part.to));
    return node("li", { title: `${vm}: ${text}` }, node("code", {}, vm.slice(-6)),
      node("span", { class: "track", "aria-hidden": "true" }, ...bars), node("span", { class: "visually-hidden" }, text));
  }));
  const failed = timelines.filter(({ parts }) => parts.some((part) => part.state === "failed")).length;
  byId("timelines-text").textContent = `${timelines.length} VMs existed in the last ${span(end - begin)}; ${failed} of them failed.`;
  for (const line of document.querySelectorAll(".ticks")) {
    line.replaceChildren(...ticks(begin, end).map((at) => placed(node("time", {}, clock(at)), at)));
  }
  drawCapacity(timelines, begin, end);
}

const clock = (at) => new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

function drawCapacity(timelines, begin, end) {
  const total = model.host?.slots.total ?? 1;
  const { bands, peak, top } = capacity(timelines, total, begin, end);
  const svg = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  byId("capacity").replaceChildren(
    ...bands.map(({ state: name, path }) => svg("path", { d: path, "data-state": name })),
    svg("line", { x1: 0, x2: 1000, y1: top, y2: top }));
  byId("capacity-text").textContent = `VMs of this agent held at most ${peak} of ${total} slots at the same time. The dashed line marks all slots.`;
}

async function fetchApi(path, headers = {}) {
  const token = sessionStorage.getItem("token");
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(path, { headers, cache: "no-store" });
  if (response.status === 401) byId("login").hidden = false;
  if (!response.ok && response.status !== 304) throw new Error(`${path} returned ${response.status}`);
  const date = Date.parse(response.headers.get("Date"));
  if (date && Math.abs(Date.now() - date) > 2000) model.skewMs = Date.now() - date;
  return response;
}

let refreshing = null;
let refreshAgain = false;
let streaming = false;
let lastRefreshMs = -REFRESH_PAUSE_MS;

// Fetch the host and its VMs. One refresh runs at a time; a call during a refresh causes one more after it.
async function refresh() {
  if (refreshing) { refreshAgain = true; return; }
  refreshing = (async () => {
    await new Promise((resolve) => setTimeout(resolve, lastRefreshMs + REFRESH_PAUSE_MS - performance.now()));
    lastRefreshMs = performance.now();
    const [host, vms] = await Promise.all([
      fetchApi("v1/host", model.etag ? { "If-None-Match": model.etag } : {}), fetchApi("v1/vms"),
    ]);
    if (host.status !== 304) {
      model.host = await host.json();
      model.etag = host.headers.get("ETag");
      showHost(model.host);
    }
    model.vms = (await vms.json()).vms;
    showVms(model.vms);
    drawCharts();
    if (streaming) showConnection("live", "live");
  })();
  try { await refreshing; } catch { showConnection("lost", "no answer from the agent"); } finally { refreshing = null; }
  if (refreshAgain) { refreshAgain = false; await refresh(); }
}

function showConnection(name, text) {
  if (byId("connection").dataset.state === name) return;
  byId("connection").dataset.state = name;
  byId("connection").textContent = text;
}

// Load the events of the last hour from the agent's journal, so a reloaded page shows the same history.
async function loadEvents() {
  const { last } = await (await fetchApi("v1/events?limit=1")).json();
  const events = [];
  for (let first = last; first > 0 && events.length < KEPT_EVENTS; ) {
    const after = Math.max(0, first - PAGE_EVENTS);
    const page = await (await fetchApi(`v1/events?after=${after}&limit=${first - after}`)).json();
    events.unshift(...page.events);
    if (!page.events.length || Date.parse(page.events[0].at) < now() - LONGEST_MS) break;
    first = after;
  }
  model.events = events;
  model.lastEvent = last;
  showEvents();
}

function addEvent(data) {
  const event = JSON.parse(data);
  if (event.number <= model.lastEvent) return;
  model.lastEvent = event.number;
  model.events = [...model.events.slice(1 - KEPT_EVENTS), event];
  byId("events").prepend(eventLine(event));
  while (byId("events").children.length > SHOWN_EVENTS) byId("events").lastChild.remove();
  refresh();
}

// Read the event stream by hand: EventSource stops at some errors and cannot start at the number of an event.
async function followEvents() {
  const response = await fetchApi(`v1/events?after=${model.lastEvent}`, { Accept: "text/event-stream" });
  streaming = true;
  showConnection("live", "live");
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "", { value, done } = await reader.read(); !done; { value, done } = await reader.read()) {
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").find((text) => text.startsWith("data: "));
      if (data) addEvent(data.slice(6));
    }
  }
}

async function stayConnected() {
  for (let delay = 500; ; delay = Math.min(delay * 2, 10_000)) {
    try {
      await refresh();
      await loadEvents();
      delay = 500;
      await followEvents();
    } catch (error) { console.debug(error); } // the page shows the failure below
    streaming = false;
    showConnection("lost", "no answer from the agent; reconnecting");
    await new Promise((resolve) => setTimeout(resolve, delay * (0.5 + Math.random() / 2)));
  }
}

byId("login").addEventListener("submit", (submission) => {
  submission.preventDefault();
  sessionStorage.setItem("token", byId("token").value.trim());
  location.reload();
});
setInterval(updateDurations, 1000);
setInterval(() => { if (document.visibilityState === "visible") drawCharts(); }, REFRESH_MS / 2);
setInterval(() => { if (document.visibilityState === "visible" && byId("connection").dataset.state === "live") refresh(); }, REFRESH_MS);
setInterval(() => { if (model.host?.images.some((image) => image.progress)) refresh(); }, PULL_REFRESH_MS);
stayConnected();
