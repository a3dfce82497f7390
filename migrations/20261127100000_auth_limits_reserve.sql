-- Tries are reserved before they are evaluated. A window belongs to its row: not all are equally long.
ALTER TABLE auth.limits
    ADD COLUMN pending integer NOT NULL DEFAULT 0,
    ADD COLUMN most integer NOT NULL DEFAULT 0,
    ADD COLUMN window_s real NOT NULL DEFAULT 900;
