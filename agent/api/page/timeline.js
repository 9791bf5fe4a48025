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
    const state = stateAfter(event.kind);
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

// How many VMs lived when, as an SVG path in a box of 1000 by 100; the height of `total` in it; the most at once.
export function capacityPath(found, total, begin, end) {
  const changes = found.flatMap(({ parts }) => [[parts[0].from, 1], [parts.at(-1).to, -1]]).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  let count = 0;
  const peak = Math.max(0, ...changes.map(([, change]) => (count += change)));
  const x = (at) => Math.round((1000 * (at - begin)) / (end - begin));
  const y = (number) => Math.round(100 - (90 * number) / Math.max(1, total, peak));
  let path = "M0 100";
  count = 0;
  for (const [at, change] of changes) {
    path += ` L${x(at)} ${y(count)}`;
    count += change;
    path += ` L${x(at)} ${y(count)}`;
  }
  return { path: `${path} L1000 ${y(count)} L1000 100 Z`, peak, top: y(total) };
}
