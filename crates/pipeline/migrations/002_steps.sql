-- Steps that run as pods: one row for each attempt of a task. `name` is that of the executor's run.
CREATE TABLE pipeline_steps (
  namespace TEXT NOT NULL, name TEXT NOT NULL,
  run_id TEXT NOT NULL,
  step TEXT NOT NULL, -- JSON of what the pod needs; empty once it has succeeded
  outcome TEXT,       -- JSON of how the program ended; NULL until the pod has delivered it
  PRIMARY KEY (namespace, name)
) WITHOUT ROWID;
CREATE INDEX pipeline_steps_by_run ON pipeline_steps (run_id);
