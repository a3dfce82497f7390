-- undoes 20261127152600_kernel_notify_after_commit.sql
DROP FUNCTION kernel.notify_after_commit(text, text);
