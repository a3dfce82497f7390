-- undoes 20261127212500_kernel_create_backup_tables.sql
DROP TABLE kernel.backup_wal;
DROP TABLE kernel.backup_runs;
