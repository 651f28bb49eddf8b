// A run of 10,000 tasks, as the server would show it: a loop of 1,000 iterations of four tasks, and thousands of tasks side by side.

const ITERATIONS = 1000;
const STEPS = ["read", "clean", "train", "test"];
const FAN = 10_000 - 4 - ITERATIONS * (STEPS.length + 1);
const START = Date.UTC(2026, 0, 15, 8);

export function bigRun() {
  const node = (name, component = "comp-step") => ({
    name, displayName: name, component, kind: component === "comp-step" ? { type: "container", image: "python:3.11" } : { type: "graph" },
    ...(component === "comp-loop" ? { iterates: { items: "items", parallelism: 0 } } : {}), runsAfterFailures: false, isCacheable: true, retries: 0,
  });
  const edge = (from, to) => ({ from, to });
  const fan = Array.from({ length: FAN }, (_, i) => `fan-${i + 1}`);
  const outline = {
    name: "big", description: "", inputs: [],
    root: {
      nodes: [node("prepare"), node("loop", "comp-loop"), node("finish"), ...fan.map((name) => node(name))],
      edges: [edge("prepare", "loop"), edge("loop", "finish"), ...fan.flatMap((name) => [edge("prepare", name), edge(name, "finish")])], outputs: {},
    },
    components: { "comp-loop": { nodes: STEPS.map((name) => node(name)), edges: STEPS.slice(1).map((name, i) => edge(STEPS[i], name)), outputs: {} } },
  };
  const list = [];
  const add = (path, kind, at, more = {}) => list.push({ path, kind, state: "SUCCEEDED", attempt: kind === "CONTAINER" ? 1 : 0, createdAt: START + at, startedAt: START + at + 5, finishedAt: START + at + 900, ...more });
  add("", "ROOT", 0);
  add("prepare", "CONTAINER", 0);
  add("loop", "LOOP", 1000, { iterations: ITERATIONS });
  for (let i = 0; i < ITERATIONS; i++) {
    add(`loop[${i}]`, "ITERATION", 1000 + i * 20);
    STEPS.forEach((name, s) => add(`loop[${i}]/${name}`, "CONTAINER", 1000 + i * 20 + s * 200, i % 97 === 0 && s === 3 ? { state: "FAILED" } : {}));
  }
  fan.forEach((name, i) => add(name, "CONTAINER", 1000 + i * 4, i % 5 === 0 ? { state: "CACHED" } : {}));
  add("finish", "CONTAINER", 25_000);
  const run = {
    runId: "big", trackedRunId: "big", displayName: "big", pipelineName: "big", experimentId: "", recurringRunId: "", namespace: "", state: "FAILED", error: "",
    parameters: {}, createdAt: START, finishedAt: START + 26_000, changes: 1, tasks: list,
  };
  return { run, outline };
}
