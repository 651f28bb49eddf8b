-- The worker of a pool that executes a step: the name of the executor's run, and the number of its attempt. Empty for a step with a pod of
-- its own, and for one that waits for a worker.
ALTER TABLE pipeline_steps ADD COLUMN worker TEXT NOT NULL DEFAULT '';
ALTER TABLE pipeline_steps ADD COLUMN worker_attempt INTEGER NOT NULL DEFAULT 0;
CREATE INDEX pipeline_steps_by_worker ON pipeline_steps (namespace, worker) WHERE worker <> '';
