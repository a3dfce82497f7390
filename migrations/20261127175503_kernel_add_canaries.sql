-- Retries of dead letters that begin with one.
CREATE TABLE kernel.canaries (
    id uuid PRIMARY KEY,
    queue text,
    task text,
    cause text,
    died_before timestamptz NOT NULL,
    rate_per_s double precision NOT NULL CHECK (rate_per_s > 0),
    max_failed integer NOT NULL CHECK (max_failed >= 0),
    started_by text NOT NULL,
    state text NOT NULL DEFAULT 'trying' CHECK (state IN ('trying', 'releasing', 'stopped', 'done', 'failed')),
    reason text NOT NULL DEFAULT '',
    letter_id uuid NOT NULL,
    last_id uuid NOT NULL,
    total integer NOT NULL,
    released integer NOT NULL DEFAULT 1,
    succeeded integer NOT NULL DEFAULT 0,
    failed integer NOT NULL DEFAULT 0,
    cancelled integer NOT NULL DEFAULT 0,
    conflicts integer NOT NULL DEFAULT 0,
    is_all_released boolean NOT NULL DEFAULT false,
    started_at timestamptz NOT NULL DEFAULT now(),
    released_at timestamptz NOT NULL DEFAULT now(),
    progress_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz
);

COMMENT ON TABLE kernel.canaries IS 'Retries of many dead letters: one first, the others at a rate when it has succeeded. Jobs of platform.run_canary move them on.';
COMMENT ON COLUMN kernel.canaries.id IS 'UUIDv7.';
COMMENT ON COLUMN kernel.canaries.queue IS 'Filter: queue of the dead letters; null for all.';
COMMENT ON COLUMN kernel.canaries.task IS 'Filter: task of the dead letters; null for all.';
COMMENT ON COLUMN kernel.canaries.cause IS 'Filter: cause of the dead letters; null for all.';
COMMENT ON COLUMN kernel.canaries.died_before IS 'Filter: dead before this time, which is that of the start at the latest, so that nothing is released twice.';
COMMENT ON COLUMN kernel.canaries.rate_per_s IS 'Maximum number of dead letters that are released in a second.';
COMMENT ON COLUMN kernel.canaries.max_failed IS 'It fails when more of the released letters than this are dead again or have failed an attempt.';
COMMENT ON COLUMN kernel.canaries.started_by IS 'Id of the actor, or os:USER@HOST.';
COMMENT ON COLUMN kernel.canaries.state IS 'trying (the first letter runs), releasing, stopped (by an operator, or nothing happened for a day), done, or failed.';
COMMENT ON COLUMN kernel.canaries.reason IS 'Why it ended.';
COMMENT ON COLUMN kernel.canaries.letter_id IS 'The letter that is tried first.';
COMMENT ON COLUMN kernel.canaries.last_id IS 'The last letter that was released; letters are released in the order of their ids.';
COMMENT ON COLUMN kernel.canaries.total IS 'Number of matching dead letters at the start.';
COMMENT ON COLUMN kernel.canaries.released IS 'Number of released letters.';
COMMENT ON COLUMN kernel.canaries.succeeded IS 'Number of released letters that are done.';
COMMENT ON COLUMN kernel.canaries.failed IS 'Number of released letters that are dead again.';
COMMENT ON COLUMN kernel.canaries.cancelled IS 'Number of released letters that somebody cancelled or removed meanwhile.';
COMMENT ON COLUMN kernel.canaries.conflicts IS 'Number of letters that stay because unfinished jobs have their unique keys.';
COMMENT ON COLUMN kernel.canaries.is_all_released IS 'Whether no letter is left to release.';
COMMENT ON COLUMN kernel.canaries.started_at IS 'When it was started.';
COMMENT ON COLUMN kernel.canaries.released_at IS 'Until when letters have been released at the rate.';
COMMENT ON COLUMN kernel.canaries.progress_at IS 'When a letter was last released or ended.';
COMMENT ON COLUMN kernel.canaries.ended_at IS 'When it ended; null before.';

CREATE UNIQUE INDEX canaries_one_of_a_filter ON kernel.canaries
    (coalesce(queue, ''), coalesce(task, ''), coalesce(cause, '')) WHERE ended_at IS NULL;

CREATE TABLE kernel.canary_letters (
    canary_id uuid NOT NULL REFERENCES kernel.canaries (id) ON DELETE CASCADE,
    letter_id uuid NOT NULL,
    PRIMARY KEY (canary_id, letter_id)
);

COMMENT ON TABLE kernel.canary_letters IS 'Released letters of running canaries that have not ended.';
COMMENT ON COLUMN kernel.canary_letters.canary_id IS 'The canary that released it.';
COMMENT ON COLUMN kernel.canary_letters.letter_id IS 'The letter, which is a job now.';
