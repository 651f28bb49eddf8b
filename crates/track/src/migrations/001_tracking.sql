-- Experiments and runs -----------------------------------------------------------------------------
CREATE TABLE experiments (
  experiment_id     INTEGER PRIMARY KEY AUTOINCREMENT,
  name              TEXT NOT NULL UNIQUE,
  artifact_location TEXT NOT NULL,
  lifecycle_stage   TEXT NOT NULL,
  creation_time     INTEGER NOT NULL,
  last_update_time  INTEGER NOT NULL
);
CREATE TABLE experiment_tags (
  experiment_id INTEGER NOT NULL REFERENCES experiments ON DELETE CASCADE,
  key TEXT NOT NULL, value TEXT NOT NULL,
  PRIMARY KEY (experiment_id, key)
) WITHOUT ROWID;

-- `run` is the small integer that every other table carries in place of the 32-character run_id.
CREATE TABLE runs (
  run             INTEGER PRIMARY KEY,
  run_id          TEXT NOT NULL UNIQUE,
  experiment_id   INTEGER NOT NULL REFERENCES experiments,
  name            TEXT NOT NULL,
  user_id         TEXT NOT NULL,
  status          TEXT NOT NULL,
  start_time      INTEGER NOT NULL,
  end_time        INTEGER,
  deleted_time    INTEGER,
  lifecycle_stage TEXT NOT NULL,
  artifact_uri    TEXT NOT NULL
);
CREATE INDEX runs_by_experiment ON runs (experiment_id, start_time DESC, run_id);
CREATE TABLE tags (
  run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
  key TEXT NOT NULL, value TEXT NOT NULL,
  PRIMARY KEY (run, key)
) WITHOUT ROWID;
CREATE TABLE params (
  run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
  key TEXT NOT NULL, value TEXT NOT NULL,
  PRIMARY KEY (run, key)
) WITHOUT ROWID;
-- An equality on a parameter is the usual way into a search.
CREATE INDEX params_by_value ON params (key, value, run);

-- Metrics: the newest value of each, and all points packed by request (see points.rs).
CREATE TABLE latest_metrics (
  run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
  key TEXT NOT NULL,
  value REAL NOT NULL, is_nan INTEGER NOT NULL, step INTEGER NOT NULL, timestamp INTEGER NOT NULL,
  PRIMARY KEY (run, key)
) WITHOUT ROWID;
CREATE TABLE metric_points (
  id INTEGER PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
  points BLOB NOT NULL
);
CREATE INDEX metric_points_by_run ON metric_points (run);

-- Datasets and models that runs used or made ---------------------------------------------------------
CREATE TABLE datasets (
  dataset       INTEGER PRIMARY KEY,
  experiment_id INTEGER NOT NULL REFERENCES experiments,
  name TEXT NOT NULL, digest TEXT NOT NULL, source_type TEXT NOT NULL, source TEXT NOT NULL,
  schema TEXT, profile TEXT,
  UNIQUE (experiment_id, name, digest)
);
CREATE TABLE run_datasets (
  run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
  dataset INTEGER NOT NULL REFERENCES datasets,
  tags TEXT NOT NULL, -- JSON list of {"key","value"}
  context TEXT,       -- the tag mlflow.data.context, for search
  PRIMARY KEY (run, dataset)
) WITHOUT ROWID;
CREATE INDEX run_datasets_by_dataset ON run_datasets (dataset);
CREATE TABLE run_model_inputs (
  run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
  model_id TEXT NOT NULL,
  PRIMARY KEY (run, model_id)
) WITHOUT ROWID;
CREATE TABLE run_model_outputs (
  run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
  model_id TEXT NOT NULL, step INTEGER NOT NULL,
  PRIMARY KEY (run, model_id, step)
) WITHOUT ROWID;

-- Logged models (MLflow 3) ---------------------------------------------------------------------------
CREATE TABLE logged_models (
  model_id TEXT PRIMARY KEY,
  experiment_id INTEGER NOT NULL REFERENCES experiments,
  name TEXT NOT NULL, artifact_location TEXT NOT NULL,
  creation_timestamp_ms INTEGER NOT NULL, last_updated_timestamp_ms INTEGER NOT NULL,
  status INTEGER NOT NULL, lifecycle_stage TEXT NOT NULL,
  model_type TEXT NOT NULL, source_run_id TEXT NOT NULL, status_message TEXT
) WITHOUT ROWID;
CREATE INDEX logged_models_by_experiment ON logged_models (experiment_id, creation_timestamp_ms);
CREATE TABLE logged_model_tags (
  model_id TEXT NOT NULL REFERENCES logged_models ON DELETE CASCADE,
  key TEXT NOT NULL, value TEXT NOT NULL,
  PRIMARY KEY (model_id, key)
) WITHOUT ROWID;
CREATE TABLE logged_model_params (
  model_id TEXT NOT NULL REFERENCES logged_models ON DELETE CASCADE,
  key TEXT NOT NULL, value TEXT NOT NULL,
  PRIMARY KEY (model_id, key)
) WITHOUT ROWID;
CREATE TABLE logged_model_metrics (
  model_id TEXT NOT NULL, key TEXT NOT NULL, timestamp INTEGER NOT NULL, step INTEGER NOT NULL,
  run_id TEXT NOT NULL, value REAL NOT NULL, dataset_name TEXT, dataset_digest TEXT,
  PRIMARY KEY (model_id, key, timestamp, step, run_id)
) WITHOUT ROWID;

-- Registry -------------------------------------------------------------------------------------------
CREATE TABLE registered_models (
  name TEXT PRIMARY KEY,
  creation_time INTEGER NOT NULL, last_updated_time INTEGER NOT NULL, description TEXT
) WITHOUT ROWID;
CREATE TABLE registered_model_tags (
  name TEXT NOT NULL REFERENCES registered_models ON UPDATE CASCADE ON DELETE CASCADE,
  key TEXT NOT NULL, value TEXT NOT NULL,
  PRIMARY KEY (name, key)
) WITHOUT ROWID;
CREATE TABLE model_versions (
  name TEXT NOT NULL REFERENCES registered_models ON UPDATE CASCADE ON DELETE CASCADE,
  version INTEGER NOT NULL,
  creation_time INTEGER NOT NULL, last_updated_time INTEGER NOT NULL,
  description TEXT, user_id TEXT, current_stage TEXT NOT NULL,
  source TEXT NOT NULL, storage_location TEXT NOT NULL, run_id TEXT, run_link TEXT,
  model_id TEXT,
  PRIMARY KEY (name, version)
) WITHOUT ROWID;
CREATE INDEX model_versions_by_run ON model_versions (run_id);
CREATE TABLE model_version_tags (
  name TEXT NOT NULL, version INTEGER NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
  PRIMARY KEY (name, version, key),
  FOREIGN KEY (name, version) REFERENCES model_versions ON UPDATE CASCADE ON DELETE CASCADE
) WITHOUT ROWID;
CREATE TABLE model_aliases (
  name TEXT NOT NULL REFERENCES registered_models ON UPDATE CASCADE ON DELETE CASCADE,
  alias TEXT NOT NULL, version INTEGER NOT NULL,
  PRIMARY KEY (name, alias)
) WITHOUT ROWID;
