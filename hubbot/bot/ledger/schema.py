"""The state file's tables, as numbered migrations: never edit one that was released, add the next."""

from __future__ import annotations

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE sources (
        name TEXT PRIMARY KEY,          -- "author:org", "search:…", "published:org"
        cursor TEXT,                    -- lastModified up to which everything was read
        etag TEXT,                      -- of the first page, for If-None-Match
        resume TEXT,                    -- next page of a walk that was broken off
        newest TEXT,                    -- the cursor that this walk will end with
        sweep INTEGER NOT NULL DEFAULT 0, -- number of the last reading of the whole source
        whole REAL,                     -- when that was
        polled REAL,
        error TEXT
    ) STRICT;

    CREATE TABLE models (
        id TEXT PRIMARY KEY,
        sha TEXT NOT NULL,
        candidate TEXT NOT NULL         -- JSON
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE listings (
        source TEXT NOT NULL,
        model TEXT NOT NULL,
        sweep INTEGER NOT NULL,         -- the reading that last showed it
        PRIMARY KEY (source, model)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX listings_by_model ON listings (model);

    CREATE TABLE contents (
        model TEXT NOT NULL,
        sha TEXT NOT NULL,
        files TEXT NOT NULL,            -- JSON: path -> id
        tagged INTEGER,
        PRIMARY KEY (model, sha)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE releases (
        repo TEXT PRIMARY KEY,
        sha TEXT NOT NULL,
        model TEXT NOT NULL,
        release TEXT NOT NULL           -- JSON
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX releases_by_model ON releases (model);

    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY,
        model TEXT NOT NULL,
        revision TEXT NOT NULL,
        update_mode TEXT NOT NULL,      -- replace | revision
        cause TEXT NOT NULL,            -- the rule that asked for it
        settings TEXT NOT NULL,         -- fingerprint
        version TEXT NOT NULL,          -- of hubbot
        state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'parked', 'dropped')),
        failures INTEGER NOT NULL DEFAULT 0,
        losses INTEGER NOT NULL DEFAULT 0, -- workers that died on it since the last failure
        due REAL NOT NULL,
        delay REAL NOT NULL DEFAULT 0,  -- seconds: the wait that `due` is the end of
        worker TEXT,
        created REAL NOT NULL,
        changed REAL NOT NULL,
        error TEXT
    ) STRICT;
    CREATE UNIQUE INDEX one_queued ON jobs (model) WHERE state = 'queued';
    CREATE UNIQUE INDEX one_running ON jobs (model) WHERE state = 'running';
    CREATE INDEX jobs_by_model ON jobs (model, id);

    CREATE TABLE attempts (
        id INTEGER PRIMARY KEY,
        job INTEGER NOT NULL REFERENCES jobs (id),
        worker TEXT NOT NULL,
        started REAL NOT NULL,
        seconds REAL,                   -- by the monotonic clock
        outcome TEXT CHECK (outcome IN ('done', 'failed', 'stopped', 'lost')),
        error_class TEXT,
        error TEXT
    ) STRICT;
    CREATE INDEX attempts_by_job ON attempts (job);

    CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,       -- hash of model, ref, old and new commit
        model TEXT NOT NULL,
        ref TEXT NOT NULL,
        sha TEXT NOT NULL,
        received REAL NOT NULL,
        deliveries INTEGER NOT NULL DEFAULT 1,
        state TEXT NOT NULL CHECK (state IN ('accepted', 'delivered', 'given up')),
        failures INTEGER NOT NULL DEFAULT 0,
        due REAL NOT NULL,
        error TEXT
    ) STRICT;
    CREATE INDEX events_open ON events (id) WHERE state = 'accepted';

    CREATE TABLE yanks (
        model TEXT PRIMARY KEY,
        reason TEXT NOT NULL,
        at REAL NOT NULL
    ) STRICT;

    CREATE TABLE commits (
        id INTEGER PRIMARY KEY,
        at REAL NOT NULL,
        repo TEXT NOT NULL,
        count INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX commits_by_time ON commits (at);
    """,
    """
    ALTER TABLE events ADD COLUMN taker TEXT NOT NULL DEFAULT 'queue'; -- who hands it on: queue | github | job
    """,
    """
    ALTER TABLE jobs ADD COLUMN variants TEXT;  -- comma list that a request asked for; NULL: those of hubbot.toml
    ALTER TABLE jobs ADD COLUMN cancelled TEXT; -- by whom, while it ran
    """,
    """
    ALTER TABLE jobs ADD COLUMN refused_by TEXT; -- the releases that do not know its model; NULL: no such refusal
    """,
)
