-- Metric points that were moved out of `metric_points`, which has a row for each request (see service/compaction.rs). `points`
-- is packed in the same way in all three tables. Here each row has points of one key.
CREATE TABLE metric_chunks (
  id INTEGER PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
  key TEXT NOT NULL,
  points BLOB NOT NULL
);
CREATE INDEX metric_chunks_by_key ON metric_chunks (run, key);

-- Points of keys that had too few of them for a row of their own: each row has those of some keys that are next to each other.
CREATE TABLE metric_mixed (
  id INTEGER PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
  level INTEGER NOT NULL,
  first_key TEXT NOT NULL, last_key TEXT NOT NULL,
  points BLOB NOT NULL
);
CREATE INDEX metric_mixed_by_key ON metric_mixed (run, level, first_key, last_key);

-- How often rows of the run were compacted: whoever read rows can tell that they are still there.
ALTER TABLE runs ADD COLUMN compactions INTEGER NOT NULL DEFAULT 0;

-- The oldest rows of a run are found without sorting all of them.
DROP INDEX metric_points_by_run;
CREATE INDEX metric_points_by_run ON metric_points (run, id);

-- Secret keys of this installation, the same for all servers that share the database.
CREATE TABLE track_keys (name TEXT PRIMARY KEY, key BLOB NOT NULL) WITHOUT ROWID;
