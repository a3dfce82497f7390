-- Removes the invalidation of caches. Processes of the releases that cache must have stopped.
DROP FUNCTION kernel.invalidate(text, text[]);
