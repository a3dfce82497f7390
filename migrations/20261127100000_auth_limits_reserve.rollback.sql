ALTER TABLE auth.limits DROP COLUMN pending, DROP COLUMN most, DROP COLUMN window_s;
