// The values of a form for the inputs of a pipeline: texts while they are edited, checked and turned into the types that the pipeline declares.

import type { Field } from "./spec";

/** What the field shows for a value. */
export function textOf(field: Field, value: unknown): string {
  if (value === undefined || value === null) return "";
  if (field.type === "list" || field.type === "struct") return JSON.stringify(value, null, field.type === "struct" ? 2 : undefined);
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

export type Checked = { value: unknown } | { fault: string };

/** The value of a text, or what is wrong with it. `{ value: undefined }` leaves the choice to the default of the pipeline. */
export function check(field: Field, text: string): Checked {
  const trimmed = text.trim();
  if (field.type === "artifact") return field.required ? { fault: "A run that is started here cannot be given artifacts." } : { value: undefined };
  if (!trimmed) {
    // An empty text is a text, if the default is not one.
    if (field.type === "text" && field.default !== undefined && field.default !== "") return { value: "" };
    return field.required ? { fault: "A value is required." } : { value: undefined };
  }
  if (field.choices) return field.choices.some((choice) => String(choice) === trimmed) ? { value: field.choices.find((choice) => String(choice) === trimmed) } : { fault: `One of ${field.choices.join(", ")} is expected.` };
  switch (field.type) {
    case "text":
      return { value: text };
    case "integer":
      return /^[+-]?\d+$/.test(trimmed) && Number.isSafeInteger(Number(trimmed)) ? { value: Number(trimmed) } : { fault: "An integer is expected, such as 3." };
    case "number":
      return Number.isFinite(Number(trimmed)) ? { value: Number(trimmed) } : { fault: "A number is expected, such as 0.5." };
    case "boolean":
      return trimmed === "true" || trimmed === "false" ? { value: trimmed === "true" } : { fault: "true or false is expected." };
    default:
      try {
        const value: unknown = JSON.parse(trimmed);
        const isList = Array.isArray(value);
        if (field.type === "list") return isList ? { value } : { fault: 'A list in JSON is expected, such as ["a", "b"].' };
        return typeof value === "object" && value !== null && !isList ? { value } : { fault: 'An object in JSON is expected, such as {"a": 1}.' };
      } catch {
        return { fault: field.type === "list" ? 'A list in JSON is expected, such as ["a", "b"].' : 'An object in JSON is expected, such as {"a": 1}.' };
      }
  }
}

/** The parameters of a run, or the faults by the name of the field. */
export function checkAll(fields: readonly Field[], texts: Record<string, string>): { parameters: Record<string, unknown>; faults: Record<string, string> } {
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
export const expects: Record<Field["type"], string> = {
  text: "text", integer: "integer", number: "number", boolean: "true or false", list: "list in JSON", struct: "object in JSON", artifact: "artifact",
};
