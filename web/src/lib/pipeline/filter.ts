// Which runs of pipelines a list has, as conditions of the server's filter.

import type { Predicate, RunState } from "../pipelines";

export interface RunFilter {
  state?: RunState;
  /** A part of the name, in any case, or the id of a run. */
  text?: string;
  /** Id of a registered pipeline. */
  pipeline?: string;
  /** Name of a pipeline that came with its runs from a file. */
  file?: string;
}

export const NOT_ARCHIVED: Predicate = { operation: "EQUALS", key: "storage_state", string_value: "AVAILABLE" };

const RUN_ID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

export function predicatesOf({ state, text, pipeline, file }: RunFilter): Predicate[] {
  const equals = (key: string, value: string | undefined): Predicate[] => (value ? [{ operation: "EQUALS", key, string_value: value }] : []);
  const byText: Predicate[] = !text ? [] : RUN_ID.test(text) ? equals("run_id", text) : [{ operation: "IS_SUBSTRING", key: "name", string_value: text }];
  return [...equals("state", state), ...byText, ...equals("pipeline_id", pipeline), ...equals("pipeline_name", file)];
}
