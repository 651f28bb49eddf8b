-- Servers that carry out runs. A server counts `beats` up as long as it lives.
CREATE TABLE pipeline_owners (
  owner TEXT PRIMARY KEY,
  beats INTEGER NOT NULL
) WITHOUT ROWID;
-- The server that carries out the run; empty for a run of an earlier version.
ALTER TABLE pipeline_runs ADD COLUMN owner TEXT NOT NULL DEFAULT '';
CREATE INDEX pipeline_runs_by_owner ON pipeline_runs (owner, state);
