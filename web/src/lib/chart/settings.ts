// The reader's settings of charts, for all runs.

import { recall, remember } from "../remembered";
import { defaultSettings, type ChartSettings } from "./curve";

const KEY = "charts";

function isSettings(value: unknown): value is ChartSettings {
  if (typeof value !== "object" || value === null) return false;
  const { smoothing, log, x } = value as Record<string, unknown>;
  return typeof smoothing === "number" && smoothing >= 0 && smoothing < 1 && typeof log === "boolean" && ["step", "time", "relative"].includes(x as string);
}

export const savedSettings = (): ChartSettings => recall(KEY, isSettings) ?? defaultSettings;
export const saveSettings = (settings: ChartSettings) => remember(KEY, settings);
