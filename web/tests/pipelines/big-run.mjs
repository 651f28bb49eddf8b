// A run of 10,000 tasks, as the server would show it: a loop of 1,000 iterations of four tasks, and thousands of tasks side by side.

const ITERATIONS = 1000;
const STEPS = ["read", "clean", "train", "test"];
const FAN = 10_000 - 4 - ITERATIONS * (STEPS.length + 1);
const START = Date.UTC(2026, 0, 15, 8);

export function bigRun() {
  const reference = (name, needs = []) => ({ taskInfo: { name }, componentRef: { name: "comp-step" }, ...(needs.length ? { dependentTasks: needs } : {}) });
  const fan = Array.from({ length: FAN }, (_, i) => `fan-${i + 1}`);
  const tasks = {
    prepare: reference("prepare"),
    loop: { taskInfo: { name: "loop" }, componentRef: { name: "comp-loop" }, dependentTasks: ["prepare"], parameterIterator: { itemInput: "item", items: { inputParameter: "items" } } },
    finish: reference("finish", ["loop", ...fan]),
    ...Object.fromEntries(fan.map((name) => [name, reference(name, ["prepare"])])),
  };
  const inside = Object.fromEntries(STEPS.map((name, i) => [name, reference(name, i ? [STEPS[i - 1]] : [])]));
  const specification = {
    pipelineInfo: { name: "big" }, root: { dag: { tasks } },
    components: { "comp-step": { executorLabel: "exec-step" }, "comp-loop": { dag: { tasks: inside } } },
    deploymentSpec: { executors: { "exec-step": { container: { image: "python:3.11", command: ["true"] } } } },
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
  return { run, specification };
}
