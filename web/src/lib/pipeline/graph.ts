// The graphs of a pipeline, as the server derives them from its compiled form.

/** A task as it stands in a graph, before any run. */
interface Node {
  name: string;
  displayName: string;
  component: string;
  kind: { type: "container"; image: string } | { type: "importer" } | { type: "graph" };
  condition?: string;
  /** Of a loop: the number of iterations, if it is known before the run. */
  iterates?: { count?: number };
  runsAfterFailures: boolean;
}
interface Graph {
  nodes: Node[];
  edges: { from: string; to: string }[];
}
export type InputType = "STRING" | "NUMBER_INTEGER" | "NUMBER_DOUBLE" | "BOOLEAN" | "LIST" | "STRUCT" | "TASK_CONFIG" | "ARTIFACT";
/** An input of a pipeline. */
export interface Input {
  name: string;
  type: InputType;
  isRequired: boolean;
  default?: unknown;
  description: string;
  /** The values that are allowed, if only some are. */
  choices?: unknown[];
}
/** What a compiled pipeline says to a reader. */
export interface Outline {
  name: string;
  description: string;
  inputs: Input[];
  root: Graph;
  /** The graphs inside of it, by the names of their components. */
  components: Record<string, Graph>;
}

/** A task of a graph with the names of those that it waits for. */
export interface Step extends Node {
  needs: string[];
}
export const isGroup = (step: Step) => step.kind.type === "graph";
export const isLoop = (step: Step) => step.iterates !== undefined;

/** The graphs of a pipeline by the names of their components; that of the whole pipeline has an empty name. */
export class Graphs {
  #graphs = new Map<string, Map<string, Step>>();
  constructor(readonly outline: Outline) {}

  /** The steps of a graph, by their names. */
  of(component: string): ReadonlyMap<string, Step> {
    let found = this.#graphs.get(component);
    if (!found) {
      const graph = component ? this.outline.components[component] : this.outline.root;
      found = new Map((graph?.nodes ?? []).map((node) => [node.name, { ...node, needs: [] }]));
      for (const edge of graph?.edges ?? []) found.get(edge.to)?.needs.push(edge.from);
      this.#graphs.set(component, found);
    }
    return found;
  }

  /** The step that the task at a path executes; undefined for the whole pipeline and for what the pipeline does not have. */
  at(path: string): Step | undefined {
    let found: Step | undefined;
    for (const segment of path.split("/")) {
      found = this.of(found?.component ?? "").get(segment.replace(/\[\d+\]$/, ""));
      if (!found) return undefined;
    }
    return found;
  }
}
