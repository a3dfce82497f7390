-- transactional: false
-- Dead letters of a rare queue.
CREATE INDEX CONCURRENTLY IF NOT EXISTS dead_letters_queue ON kernel.dead_letters (queue, id);
