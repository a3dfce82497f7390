-- What is purged can be restored for a day.
CREATE TABLE kernel.purged_dead_letters (
    LIKE kernel.dead_letters INCLUDING DEFAULTS INCLUDING COMMENTS,
    purge_id uuid NOT NULL,
    purged_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (id)
);

COMMENT ON TABLE kernel.purged_dead_letters IS 'Dead letters that an operator purged. They can be restored for a day, then they are deleted.';
COMMENT ON COLUMN kernel.purged_dead_letters.purge_id IS 'UUIDv7 of the purge, which may have taken several requests.';
COMMENT ON COLUMN kernel.purged_dead_letters.purged_at IS 'When it was purged.';

CREATE INDEX purged_dead_letters_purged_at ON kernel.purged_dead_letters (purged_at);
CREATE INDEX purged_dead_letters_purge ON kernel.purged_dead_letters (purge_id, id);
