// From events to lives: which VM was in which state when. Pure, so that it can be tested by itself.

const STATES = {
  "vm-creating": "starting", "vm-starting": "starting", "vm-ready": "ready", "lease-granted": "leased",
  "vm-suspending": "standby", "vm-standby": "standby", "vm-resuming": "starting",
  "vm-failed": "failed", "vm-teardown-failed": "failed", "vm-stopping": "stopping", "vm-gone": "gone",
};

// The state a VM is in after an event of this kind; undefined when the event tells nothing of it.
export const stateAfter = (kind) => STATES[kind];

const PHASES = { creating: "starting", resuming: "starting", suspending: "standby" };

// The lives of all VMs between two moments (ms), oldest first: parts of { state, from, to } in order.
export function lives(events, vms, begin, end) {
  const found = new Map();
  for (const event of events) {
    // A VM that somebody asked to have replaced did not fail, though it goes the same way.
    const state = event.cause === "requested" ? "stopping" : stateAfter(event.kind);
    if (!event.vm || !state) continue;
    const parts = found.get(event.vm) ?? [];
    const at = Date.parse(event.at);
    if (parts.length) parts.at(-1).to = at;
    if (parts.at(-1)?.state !== state) parts.push({ state, from: at, to: end });
    else parts.at(-1).to = end;
    found.set(event.vm, parts);
  }
  for (const vm of vms) {
    if (!found.has(vm.name)) found.set(vm.name, [{ state: PHASES[vm.state] ?? vm.state, from: Date.parse(vm.since), to: end }]);
  }
  return [...found]
    .map(([vm, parts]) => ({
      vm,
      parts: parts
        .filter((part) => part.state !== "gone" && part.to > begin)
        .map((part) => ({ ...part, from: Math.max(begin, part.from) })),
    }))
    .filter((life) => life.parts.length)
    .sort((a, b) => a.parts[0].from - b.parts[0].from);
}

// What holds a slot, from the bottom of the drawing up. A VM on standby holds none.
const STACK = ["leased", "ready", "starting", "failed", "stopping"];

// How many slots were held by VMs in which state when: [{ at, counts }], counts in the order of STACK, one per change.
export function steps(found, begin) {
  const changes = found.flatMap(({ parts }) => parts.flatMap((part) => {
    const level = STACK.indexOf(part.state);
    return level < 0 ? [] : [[part.from, level, 1], [part.to, level, -1]];
  })).sort((a, b) => a[0] - b[0]);
  const made = [{ at: begin, counts: STACK.map(() => 0) }];
  for (const [at, level, change] of changes) {
    if (made.at(-1).at !== at) made.push({ at, counts: [...made.at(-1).counts] });
    made.at(-1).counts[level] += change;
  }
  return made;
}

// The same as SVG paths in a box of 1000 by 100, one for each state; the height of `total` in it; the most at once.
export function capacity(found, total, begin, end) {
  const made = steps(found, begin);
  const sum = (counts, levels) => counts.slice(0, levels).reduce((a, b) => a + b, 0);
  const peak = Math.max(...made.map((step) => sum(step.counts, STACK.length)));
  const x = (at) => Math.round((1000 * (at - begin)) / (end - begin));
  const y = (count) => Math.round(100 - (90 * count) / Math.max(1, total, peak));
  // Changes within one pixel are one change.
  const shown = made.filter((step, index) => index + 1 === made.length || x(step.at) !== x(made[index + 1].at));
  const edge = (levels) => shown.flatMap((step, index) => [
    [x(step.at), y(sum(step.counts, levels))],
    [index + 1 < shown.length ? x(shown[index + 1].at) : 1000, y(sum(step.counts, levels))],
  ]);
  const bands = STACK.flatMap((state, level) => {
    if (!shown.some((step) => step.counts[level])) return [];
    const around = [...edge(level + 1), ...edge(level).reverse()];
    return [{ state, path: `M${around.map((point) => point.join(" ")).join("L")}Z` }];
  });
  return { bands, peak, top: y(total) };
}

// Whole minutes between two moments to name under a drawing: at most seven of them.
export function ticks(begin, end) {
  const minute = 60_000;
  const apart = [1, 2, 5, 10, 15, 30].find((minutes) => (end - begin) / (minutes * minute) <= 7) ?? 60;
  const made = [];
  for (let at = Math.ceil(begin / (apart * minute)) * apart * minute; at < end; at += apart * minute) made.push(at);
  return made;
}
