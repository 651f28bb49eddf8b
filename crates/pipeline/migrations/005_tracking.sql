-- Whether everything that happened in a run that has ended was passed on to the tracking store. Runs of earlier versions count as passed on.
ALTER TABLE pipeline_runs ADD COLUMN is_tracked INTEGER NOT NULL DEFAULT 1;
CREATE INDEX pipeline_runs_untracked ON pipeline_runs (owner) WHERE is_tracked = 0;
