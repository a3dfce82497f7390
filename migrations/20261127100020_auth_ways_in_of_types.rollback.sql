DO $$ BEGIN END $$; -- what was removed does not come back
