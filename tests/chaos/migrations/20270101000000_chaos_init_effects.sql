-- What handlers have done; nothing is unique here, so that what happens twice is there twice.
CREATE SCHEMA chaos;

CREATE TABLE chaos.effects (
    kind text NOT NULL,
    key text NOT NULL,
    number bigint NOT NULL,
    before bigint,
    worker integer NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE INDEX effects_order ON chaos.effects (kind, key, number);
