-- Every change of a deployment is a new revision; the highest one is in force unless it is a removal.
CREATE TABLE deployment_revisions (
  name     TEXT NOT NULL,
  revision INTEGER NOT NULL,
  manifest TEXT,             -- JSON; NULL removes the deployment
  created  INTEGER NOT NULL, -- ms since the Unix epoch
  reason   TEXT NOT NULL,    -- apply, split, rollback, rm
  PRIMARY KEY (name, revision)
) WITHOUT ROWID;
