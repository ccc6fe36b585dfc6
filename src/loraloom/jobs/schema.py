"""The queue's tables. Migrations are only ever appended: a folder of any age is brought up to date."""

from __future__ import annotations

import sqlite3

# "Loom" in ASCII: marks the file as ours.
APPLICATION_ID = 0x4C6F6F6D

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY,
        number REAL NOT NULL,
        priority INTEGER NOT NULL,
        status TEXT NOT NULL,
        created REAL NOT NULL,
        started REAL,
        finished REAL,
        claims INTEGER NOT NULL,
        deaths INTEGER NOT NULL,
        request TEXT NOT NULL,
        result TEXT,
        error TEXT
    );
    CREATE INDEX jobs_waiting ON jobs (priority DESC, number) WHERE status = 'pending';
    CREATE INDEX jobs_finished ON jobs (finished) WHERE finished IS NOT NULL;
    CREATE INDEX jobs_by_status ON jobs (status, created);
    CREATE TABLE events (
        job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        sequence INTEGER NOT NULL,
        at REAL NOT NULL,
        kind TEXT NOT NULL,
        payload TEXT NOT NULL,
        PRIMARY KEY (job, sequence)
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE deliveries (
        job TEXT PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
        url TEXT NOT NULL,
        due REAL NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0
    );
    """,
    # ended: the place in the order in which jobs have ended. Clocks are set back, numbers are not.
    f"""
    ALTER TABLE jobs ADD COLUMN ended INTEGER;
    CREATE TEMP TABLE ranked (id TEXT PRIMARY KEY, place INTEGER);
    INSERT INTO ranked SELECT id, row_number() OVER (ORDER BY finished, rowid) FROM jobs
        WHERE finished IS NOT NULL;
    UPDATE jobs SET ended = (SELECT place FROM ranked WHERE ranked.id = jobs.id) WHERE finished IS NOT NULL;
    DROP TABLE ranked;
    DROP INDEX jobs_finished;
    CREATE INDEX jobs_ended ON jobs (ended) WHERE ended IS NOT NULL;
    DROP INDEX jobs_by_status;
    CREATE INDEX jobs_by_status ON jobs (status);
    CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
    PRAGMA application_id = {APPLICATION_ID};
    """,
    # publications: files of finished jobs that are on the disk under a passing name and get their own.
    """
    ALTER TABLE jobs ADD COLUMN place TEXT;
    ALTER TABLE jobs ADD COLUMN losses INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE publications (
        staged TEXT PRIMARY KEY,
        job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        final TEXT NOT NULL
    );
    CREATE INDEX publications_of ON publications (job);
    """,
)


def migrate(database: sqlite3.Connection) -> None:
    """Bring the tables up to date, each step in a transaction of its own."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    for index in range(version, len(MIGRATIONS)):
        database.executescript(
            f"BEGIN IMMEDIATE; {MIGRATIONS[index]} PRAGMA user_version = {index + 1}; COMMIT;"
        )
