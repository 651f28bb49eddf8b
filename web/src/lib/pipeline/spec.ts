// What a compiled pipeline (IR YAML of Kubeflow Pipelines, here as JSON) says to a reader: its graphs, its inputs, and what its tasks execute.

interface Definitions {
  parameters?: Record<string, { parameterType?: string; defaultValue?: unknown; isOptional?: boolean; description?: string; literals?: unknown[] }>;
  artifacts?: Record<string, { artifactType?: { schemaTitle?: string }; isOptional?: boolean; description?: string }>;
}
interface TaskSpec {
  taskInfo?: { name?: string };
  componentRef?: { name?: string };
  dependentTasks?: string[];
  inputs?: Record<string, Record<string, unknown>>;
  triggerPolicy?: { condition?: string; strategy?: string };
  parameterIterator?: { items?: { raw?: string } };
  artifactIterator?: object;
  iteratorPolicy?: { parallelismLimit?: number };
  retryPolicy?: { maxRetryCount?: number };
  cachingOptions?: { enableCache?: boolean };
}
interface ComponentSpec {
  dag?: { tasks?: Record<string, TaskSpec> };
  executorLabel?: string;
  inputDefinitions?: Definitions;
}
interface Executor {
  container?: {
    image?: string;
    command?: string[];
    args?: string[];
    env?: { name: string; value?: string }[];
    resources?: { cpuLimit?: number; memoryLimit?: number; resourceCpuLimit?: string; resourceMemoryLimit?: string; accelerator?: { type?: string; count?: string; resourceCount?: string; resourceType?: string } };
  };
  importer?: { artifactUri?: { constant?: string; runtimeParameter?: string } };
}
export interface Specification {
  pipelineInfo?: { name?: string; description?: string };
  root?: ComponentSpec;
  components?: Record<string, ComponentSpec>;
  deploymentSpec?: { executors?: Record<string, Executor> };
}
/** A specification, or an object with it and its settings for Kubernetes. */
export type Compiled = Specification & { pipeline_spec?: Specification; platform_spec?: object };

export const specificationOf = (compiled: Compiled): Specification => compiled.pipeline_spec ?? compiled;

/** A task as it stands in the graph of a pipeline, before any run. */
export interface Step {
  name: string;
  title: string;
  needs: string[];
  component: string;
  /** Whether it is a graph of its own. */
  isGroup: boolean;
  isLoop: boolean;
  /** Number of iterations, if it is known before the run. */
  count?: number;
  condition?: string;
  runsAfterFailures: boolean;
}

/** The names of the tasks whose outputs are among the inputs of a task. */
function producers(value: unknown, found: Set<string>) {
  if (typeof value !== "object" || value === null) return;
  for (const [key, inner] of Object.entries(value)) {
    if (key === "producerTask" && typeof inner === "string") found.add(inner);
    else producers(inner, found);
  }
}

function step(name: string, task: TaskSpec, spec: Specification): Step {
  const needs = new Set(task.dependentTasks);
  producers(task.inputs, needs);
  const component = task.componentRef?.name ?? "";
  const raw = task.parameterIterator?.items?.raw;
  let count: number | undefined;
  try {
    count = raw === undefined ? undefined : (JSON.parse(raw) as unknown[]).length;
  } catch {
    count = undefined;
  }
  return {
    name, needs: [...needs], component, count,
    title: task.taskInfo?.name ?? name,
    isGroup: !!spec.components?.[component]?.dag,
    isLoop: !!(task.parameterIterator ?? task.artifactIterator),
    condition: task.triggerPolicy?.condition,
    runsAfterFailures: task.triggerPolicy?.strategy === "ALL_UPSTREAM_TASKS_COMPLETED",
  };
}

/** The graphs of a pipeline by the names of their components; that of the whole pipeline has an empty name. */
export class Graphs {
  #graphs = new Map<string, Step[]>();
  constructor(readonly spec: Specification) {}

  of(component: string): Step[] {
    let found = this.#graphs.get(component);
    if (!found) {
      const tasks = (component ? this.spec.components?.[component] : this.spec.root)?.dag?.tasks ?? {};
      found = Object.entries(tasks).map(([name, task]) => step(name, task, this.spec));
      this.#graphs.set(component, found);
    }
    return found;
  }

  /** The step that the task at a path executes; undefined for the whole pipeline and for what the specification does not have. */
  at(path: string): Step | undefined {
    let found: Step | undefined;
    for (const segment of path.split("/")) {
      const name = segment.replace(/\[\d+\]$/, "");
      found = this.of(found?.component ?? "").find((s) => s.name === name);
      if (!found) return undefined;
    }
    return found;
  }
}

export type FieldType = "text" | "integer" | "number" | "boolean" | "list" | "struct" | "artifact";
/** An input of a pipeline. */
export interface Field {
  name: string;
  type: FieldType;
  required: boolean;
  default?: unknown;
  description?: string;
  /** The values that are allowed, if only some are. */
  choices?: unknown[];
}

const TYPES: Record<string, FieldType> = {
  STRING: "text", NUMBER_INTEGER: "integer", NUMBER_DOUBLE: "number", BOOLEAN: "boolean", LIST: "list", STRUCT: "struct", TASK_FINAL_STATUS: "struct",
};

/** The inputs of a pipeline, those without a default first. */
export function fields(spec: Specification): Field[] {
  const { parameters = {}, artifacts = {} } = spec.root?.inputDefinitions ?? {};
  const list = [
    ...Object.entries(parameters).map(([name, p]): Field => ({
      name, type: TYPES[p.parameterType ?? ""] ?? "text", required: !p.isOptional && p.defaultValue === undefined,
      default: p.defaultValue, description: p.description, choices: p.literals?.length ? p.literals : undefined,
    })),
    ...Object.entries(artifacts).map(([name, a]): Field => ({ name, type: "artifact", required: !a.isOptional, description: a.description })),
  ];
  return list.sort((a, b) => Number(b.required) - Number(a.required));
}

/** Where a task is executed, and with what. */
export interface Environment {
  image: string;
  packages: string[];
  variables: { name: string; value?: string }[];
  resources: string[];
  /** The source text of a Python component, or the command of a container. */
  program: string;
}

const WORD = /'([^']*)'|"([^"]*)"|(\S+)/g;
/** The packages that the script of the SDK installs with `pip`. */
function packagesOf(script: string): string[] {
  return [...script.matchAll(/pip install([^\n&|]*)/g)].flatMap((found) => {
    const words = [...(found[1] ?? "").matchAll(WORD)].map((word) => ({ text: word[1] ?? word[2] ?? word[3] ?? "", quoted: word[3] === undefined }));
    return words.filter((word) => word.quoted && !word.text.startsWith("-") && !/^https?:/.test(word.text)).map((word) => word.text);
  });
}

export function environment(spec: Specification, step: Step): Environment | undefined {
  const container = spec.deploymentSpec?.executors?.[spec.components?.[step.component]?.executorLabel ?? ""]?.container;
  if (!container) return undefined;
  const { command = [], args = [], resources } = container;
  const source = command.find((part) => /^\s*(import|from|def|@|#)[\s\S]*\bdef /.test(part));
  const accelerator = resources?.accelerator;
  const sizes = [
    [resources?.resourceCpuLimit ?? resources?.cpuLimit, "CPU"],
    [resources?.resourceMemoryLimit ?? (resources?.memoryLimit && `${resources.memoryLimit} GB`), "memory"],
    [accelerator && (accelerator.resourceCount ?? accelerator.count), accelerator?.resourceType ?? accelerator?.type ?? "accelerator"],
  ];
  return {
    image: container.image ?? "",
    packages: [...new Set(command.flatMap(packagesOf))],
    variables: container.env ?? [],
    resources: sizes.filter(([amount]) => amount).map(([amount, what]) => `${amount} ${what}`),
    program: source?.trim() ?? [...command, ...args].join(" ").trim(),
  };
}
