// Turn events into VM timelines: which VM was in which state at which time. Pure functions, tested without a page.

const STATES = {
  "vm-creating": "starting", "vm-starting": "starting", "vm-ready": "ready", "lease-granted": "leased",
  "vm-suspending": "standby", "vm-standby": "standby", "vm-resuming": "starting",
  "vm-failed": "failed", "vm-teardown-failed": "failed", "vm-stopping": "stopping", "vm-gone": "gone",
};

// The state a VM is in after an event of this kind; undefined when the event does not change it.
export const stateAfter = (kind) => STATES[kind];

const PHASES = { creating: "starting", resuming: "starting", suspending: "standby" };

// The timelines of all VMs between two times (ms), oldest first: { vm, parts: [{ state, from, to }] }.
export function vmTimelines(events, vms, begin, end) {
  const partsByVm = new Map();
  for (const event of events) {
    // A VM that an operator replaces did not fail, although it emits the same events.
    const state = event.cause === "requested" ? "stopping" : stateAfter(event.kind);
    if (!event.vm || !state) continue;
    const parts = partsByVm.get(event.vm) ?? [];
    const at = Date.parse(event.at);
    if (parts.length) parts.at(-1).to = at;
    if (parts.at(-1)?.state !== state) parts.push({ state, from: at, to: end });
    else parts.at(-1).to = end;
    partsByVm.set(event.vm, parts);
  }
  for (const vm of vms) {
    if (!partsByVm.has(vm.name)) partsByVm.set(vm.name, [{ state: PHASES[vm.state] ?? vm.state, from: Date.parse(vm.since), to: end }]);
  }
  return [...partsByVm]
    .map(([vm, parts]) => ({
      vm,
      parts: parts
        .filter((part) => part.state !== "gone" && part.to > begin)
        .map((part) => ({ ...part, from: Math.max(begin, part.from) })),
    }))
    .filter((timeline) => timeline.parts.length)
    .sort((a, b) => a.parts[0].from - b.parts[0].from);
}

// The states that hold a slot, from the bottom of the chart to its top. A VM on standby holds none.
const STACK = ["leased", "ready", "starting", "failed", "stopping"];

// Slots held by state over time: [{ at, counts }], counts in the order of STACK, one entry per change.
export function slotCounts(timelines, begin) {
  const changes = timelines.flatMap(({ parts }) => parts.flatMap((part) => {
    const level = STACK.indexOf(part.state);
    return level < 0 ? [] : [[part.from, level, 1], [part.to, level, -1]];
  })).sort((a, b) => a[0] - b[0]);
  const steps = [{ at: begin, counts: STACK.map(() => 0) }];
  for (const [at, level, change] of changes) {
    if (steps.at(-1).at !== at) steps.push({ at, counts: [...steps.at(-1).counts] });
    steps.at(-1).counts[level] += change;
  }
  return steps;
}

// slotCounts as SVG paths in a box of 1000 by 100, one per state; `top` is the height of `total`, `peak` the most slots
// held at one time.
export function capacity(timelines, total, begin, end) {
  const steps = slotCounts(timelines, begin);
  const sum = (counts, levels) => counts.slice(0, levels).reduce((a, b) => a + b, 0);
  const peak = Math.max(...steps.map((step) => sum(step.counts, STACK.length)));
  const x = (at) => Math.round((1000 * (at - begin)) / (end - begin));
  const y = (count) => Math.round(100 - (90 * count) / Math.max(1, total, peak));
  // Draw only the last of the changes that share one pixel.
  const shown = steps.filter((step, index) => index + 1 === steps.length || x(step.at) !== x(steps[index + 1].at));
  const edge = (levels) => shown.flatMap((step, index) => [
    [x(step.at), y(sum(step.counts, levels))],
    [index + 1 < shown.length ? x(shown[index + 1].at) : 1000, y(sum(step.counts, levels))],
  ]);
  const bands = STACK.flatMap((state, level) => {
    if (!shown.some((step) => step.counts[level])) return [];
    const outline = [...edge(level + 1), ...edge(level).reverse()];
    return [{ state, path: `M${outline.map((point) => point.join(" ")).join("L")}Z` }];
  });
  return { bands, peak, top: y(total) };
}

// The times (ms) to mark under a chart: whole minutes, at most seven of them.
export function ticks(begin, end) {
  const minute = 60_000;
  const interval = [1, 2, 5, 10, 15, 30].find((minutes) => (end - begin) / (minutes * minute) <= 7) ?? 60;
  const times = [];
  for (let at = Math.ceil(begin / (interval * minute)) * interval * minute; at < end; at += interval * minute) times.push(at);
  return times;
}
