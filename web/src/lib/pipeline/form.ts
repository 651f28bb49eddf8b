// The values of a form for the inputs of a pipeline: texts while they are edited, checked and turned into the types that the pipeline declares.

import type { Input, InputType, Outline } from "./graph";

/** The inputs of a pipeline, those that need a value first. */
export const fields = (outline: Outline) => [...outline.inputs].sort((a, b) => Number(b.isRequired) - Number(a.isRequired));

/** Whether values of a type are written in JSON. */
export const isJson = (type: InputType) => type === "LIST" || type === "STRUCT" || type === "TASK_CONFIG";

/** What the field shows for a value. */
export function textOf(field: Input, value: unknown): string {
  if (value === undefined || value === null) return "";
  if (isJson(field.type)) return JSON.stringify(value, null, field.type === "LIST" ? undefined : 2);
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

export type Checked = { value: unknown } | { fault: string };

/** The value of a text, or what is wrong with it. `{ value: undefined }` leaves the choice to the default of the pipeline. */
export function check(field: Input, text: string): Checked {
  const trimmed = text.trim();
  if (field.type === "ARTIFACT") return field.isRequired ? { fault: "A run that is started here cannot be given artifacts." } : { value: undefined };
  if (!trimmed) {
    // An empty text is a text, if the default is not one.
    if (field.type === "STRING" && field.default !== undefined && field.default !== "") return { value: "" };
    return field.isRequired ? { fault: "A value is required." } : { value: undefined };
  }
  if (field.choices) return field.choices.some((choice) => String(choice) === trimmed) ? { value: field.choices.find((choice) => String(choice) === trimmed) } : { fault: `One of ${field.choices.join(", ")} is expected.` };
  switch (field.type) {
    case "STRING":
      return { value: text };
    case "NUMBER_INTEGER":
      return /^[+-]?\d+$/.test(trimmed) && Number.isSafeInteger(Number(trimmed)) ? { value: Number(trimmed) } : { fault: "An integer is expected, such as 3." };
    case "NUMBER_DOUBLE":
      return Number.isFinite(Number(trimmed)) ? { value: Number(trimmed) } : { fault: "A number is expected, such as 0.5." };
    case "BOOLEAN":
      return trimmed === "true" || trimmed === "false" ? { value: trimmed === "true" } : { fault: "true or false is expected." };
    default:
      try {
        const value: unknown = JSON.parse(trimmed);
        const isList = Array.isArray(value);
        if (field.type === "LIST") return isList ? { value } : { fault: 'A list in JSON is expected, such as ["a", "b"].' };
        return typeof value === "object" && value !== null && !isList ? { value } : { fault: 'An object in JSON is expected, such as {"a": 1}.' };
      } catch {
        return { fault: field.type === "LIST" ? 'A list in JSON is expected, such as ["a", "b"].' : 'An object in JSON is expected, such as {"a": 1}.' };
      }
  }
}

/** The parameters of a run, or the faults by the name of the field. */
export function checkAll(fields: readonly Input[], texts: Record<string, string>): { parameters: Record<string, unknown>; faults: Record<string, string> } {
  const parameters: Record<string, unknown> = {};
  const faults: Record<string, string> = {};
  for (const field of fields) {
    const checked = check(field, texts[field.name] ?? "");
    if ("fault" in checked) faults[field.name] = checked.fault;
    else if (checked.value !== undefined) parameters[field.name] = checked.value;
  }
  return { parameters, faults };
}

/** What a field expects, in words. */
export const expects: Record<InputType, string> = {
  STRING: "text", NUMBER_INTEGER: "integer", NUMBER_DOUBLE: "number", BOOLEAN: "true or false", LIST: "list in JSON", STRUCT: "object in JSON", TASK_CONFIG: "object in JSON", ARTIFACT: "artifact",
};
