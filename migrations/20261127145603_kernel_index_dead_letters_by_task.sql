-- transactional: false
-- Dead letters of a rare task.
CREATE INDEX CONCURRENTLY IF NOT EXISTS dead_letters_task ON kernel.dead_letters (task, id);
