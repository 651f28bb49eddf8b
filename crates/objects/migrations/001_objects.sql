-- The version of the last change of any object. Changes up to `compacted` are no longer retained. `log_end` is the total size of all
-- previous states that were ever recorded, in bytes.
CREATE TABLE object_clock (
    id INTEGER PRIMARY KEY,
    version INTEGER NOT NULL,
    compacted INTEGER NOT NULL,
    log_end INTEGER NOT NULL
);
INSERT INTO object_clock (id, version, compacted, log_end) VALUES (1, 1, 1, 0);

-- The current state of every object. `version` is that of its last change; the body does not contain it.
CREATE TABLE objects (
    resource TEXT NOT NULL,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    uid TEXT NOT NULL,
    version INTEGER NOT NULL,
    deleting INTEGER NOT NULL,
    expires_at INTEGER,
    body BLOB NOT NULL,
    PRIMARY KEY (resource, namespace, name)
);
CREATE UNIQUE INDEX objects_by_version ON objects (version);
CREATE UNIQUE INDEX objects_by_uid ON objects (uid);
CREATE INDEX objects_deleting ON objects (version) WHERE deleting = 1;
CREATE INDEX objects_expiring ON objects (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX objects_by_namespace ON objects (namespace);

-- Owners of objects, by unique id. An owner need not exist.
CREATE TABLE object_owners (
    owner TEXT NOT NULL,
    dependent TEXT NOT NULL,
    PRIMARY KEY (owner, dependent)
);
CREATE INDEX object_owners_by_dependent ON object_owners (dependent);

-- The retained changes. A row has the state that the change replaced, and the version of that state; both are NULL for a creation. So
-- the state at a version is the `previous` of the next change of the object, or its row in `objects`.
CREATE TABLE object_changes (
    version INTEGER PRIMARY KEY,
    resource TEXT NOT NULL,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    deleted INTEGER NOT NULL,
    previous_version INTEGER,
    previous BLOB,
    log_end INTEGER NOT NULL
);
CREATE UNIQUE INDEX object_changes_by_previous ON object_changes (previous_version) WHERE previous_version IS NOT NULL;
CREATE INDEX object_changes_by_resource ON object_changes (resource, namespace, name, version);
