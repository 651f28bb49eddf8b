-- Compiled pipelines, each text once: `digest` is the SHA-256 of `document`, which is JSON as the API returns it.
CREATE TABLE pipeline_specs (
  digest TEXT PRIMARY KEY,
  document TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE pipeline_pipelines (
  pipeline_id TEXT PRIMARY KEY,
  namespace TEXT NOT NULL,
  name TEXT NOT NULL, display_name TEXT NOT NULL, description TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  UNIQUE (namespace, name)
) WITHOUT ROWID;
CREATE INDEX pipeline_pipelines_by_age ON pipeline_pipelines (namespace, created_at, pipeline_id);

CREATE TABLE pipeline_versions (
  version_id TEXT PRIMARY KEY,
  pipeline_id TEXT NOT NULL REFERENCES pipeline_pipelines (pipeline_id) ON DELETE CASCADE,
  name TEXT NOT NULL, display_name TEXT NOT NULL, description TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  package_url TEXT NOT NULL, code_source_url TEXT NOT NULL,
  spec TEXT NOT NULL REFERENCES pipeline_specs (digest),
  UNIQUE (pipeline_id, name)
) WITHOUT ROWID;
CREATE INDEX pipeline_versions_by_age ON pipeline_versions (pipeline_id, created_at, version_id);
CREATE INDEX pipeline_versions_by_spec ON pipeline_versions (spec);

-- Tags of pipelines and versions; `owner` is the id of either.
CREATE TABLE pipeline_tags (
  owner TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
  PRIMARY KEY (owner, key)
) WITHOUT ROWID;

CREATE TABLE pipeline_experiments (
  experiment_id TEXT PRIMARY KEY,
  namespace TEXT NOT NULL,
  name TEXT NOT NULL, description TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  last_run_created_at INTEGER NOT NULL, -- 0: no run yet
  storage_state TEXT NOT NULL,
  UNIQUE (namespace, name)
) WITHOUT ROWID;
CREATE INDEX pipeline_experiments_by_age ON pipeline_experiments (namespace, created_at, experiment_id);

-- `run` is the small integer that other tables carry in place of the run's id. An experiment may be deleted before its runs.
CREATE TABLE pipeline_runs (
  run INTEGER PRIMARY KEY,
  run_id TEXT NOT NULL UNIQUE,
  namespace TEXT NOT NULL, experiment_id TEXT NOT NULL,
  display_name TEXT NOT NULL, description TEXT NOT NULL, service_account TEXT NOT NULL,
  storage_state TEXT NOT NULL,
  state TEXT NOT NULL,
  created_at INTEGER NOT NULL, scheduled_at INTEGER NOT NULL,
  finished_at INTEGER NOT NULL, -- 0: not finished
  pipeline_name TEXT NOT NULL,
  pipeline_id TEXT NOT NULL, version_id TEXT NOT NULL, -- empty: the specification came with the run
  spec TEXT NOT NULL REFERENCES pipeline_specs (digest),
  parameters TEXT NOT NULL,     -- JSON object
  pipeline_root TEXT NOT NULL,
  recurring_run_id TEXT NOT NULL, -- empty: started by hand
  history TEXT NOT NULL,        -- JSON list of {"at","state","error"}
  error TEXT NOT NULL,          -- why it failed, else empty
  task_changes INTEGER NOT NULL -- number of changes of its tasks
);
CREATE INDEX pipeline_runs_by_age ON pipeline_runs (namespace, created_at, run_id);
CREATE INDEX pipeline_runs_by_experiment ON pipeline_runs (experiment_id, created_at, run_id);
CREATE INDEX pipeline_runs_by_state ON pipeline_runs (state, recurring_run_id);
CREATE INDEX pipeline_runs_by_spec ON pipeline_runs (spec);

-- `task` is also the task's execution id in the API.
CREATE TABLE pipeline_tasks (
  task INTEGER PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES pipeline_runs (run) ON DELETE CASCADE,
  path TEXT NOT NULL,
  state TEXT NOT NULL,
  record TEXT NOT NULL, -- JSON of the engine's record
  UNIQUE (run, path)
);

-- Artifacts that tasks produced or imported. `task` is the path in the run, `position` counts from 0 in a list of artifacts.
CREATE TABLE pipeline_artifacts (
  artifact INTEGER PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES pipeline_runs (run) ON DELETE CASCADE,
  task TEXT NOT NULL, name TEXT NOT NULL, position INTEGER NOT NULL,
  namespace TEXT NOT NULL, pipeline_name TEXT NOT NULL,
  schema_title TEXT NOT NULL, schema_version TEXT NOT NULL,
  uri TEXT NOT NULL, metadata TEXT NOT NULL, digest TEXT,
  created_at INTEGER NOT NULL
);
CREATE INDEX pipeline_artifacts_by_task ON pipeline_artifacts (run, task, name, position);
CREATE INDEX pipeline_artifacts_by_uri ON pipeline_artifacts (uri, namespace, pipeline_name);

-- Outputs of tasks that succeeded, for tasks with the same fingerprint.
CREATE TABLE pipeline_cache (
  entry INTEGER PRIMARY KEY,
  namespace TEXT NOT NULL, pipeline_name TEXT NOT NULL, fingerprint TEXT NOT NULL,
  run_id TEXT NOT NULL, task TEXT NOT NULL,
  outputs TEXT NOT NULL, -- JSON
  created_at INTEGER NOT NULL
);
CREATE INDEX pipeline_cache_by_fingerprint ON pipeline_cache (namespace, pipeline_name, fingerprint, entry);
CREATE INDEX pipeline_cache_by_run ON pipeline_cache (run_id);

CREATE TABLE pipeline_recurring_runs (
  recurring_run_id TEXT PRIMARY KEY,
  namespace TEXT NOT NULL, experiment_id TEXT NOT NULL,
  display_name TEXT NOT NULL, description TEXT NOT NULL, service_account TEXT NOT NULL,
  enabled INTEGER NOT NULL,
  created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
  max_concurrency INTEGER NOT NULL, no_catchup INTEGER NOT NULL,
  schedule TEXT NOT NULL,      -- JSON
  pipeline_id TEXT NOT NULL, version_id TEXT NOT NULL, -- both empty: `spec`; only `version_id` empty: the newest version
  spec TEXT REFERENCES pipeline_specs (digest),
  parameters TEXT NOT NULL, pipeline_root TEXT NOT NULL,
  last_slot INTEGER,           -- newest slot that was triggered, in seconds since the Unix epoch
  triggered INTEGER NOT NULL,  -- number of runs started
  next_slot INTEGER,           -- next slot, in seconds since the Unix epoch; NULL: none
  error TEXT NOT NULL          -- why the newest slot gave no run, else empty
) WITHOUT ROWID;
CREATE INDEX pipeline_recurring_runs_by_age ON pipeline_recurring_runs (namespace, created_at, recurring_run_id);
CREATE INDEX pipeline_recurring_runs_by_experiment ON pipeline_recurring_runs (experiment_id);
CREATE INDEX pipeline_recurring_runs_by_slot ON pipeline_recurring_runs (enabled, next_slot);
CREATE INDEX pipeline_recurring_runs_by_spec ON pipeline_recurring_runs (spec);
