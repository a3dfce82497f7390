-- undoes 20261127175200_kernel_errors_by_release.sql
DROP FUNCTION kernel.hourly(bigint[], timestamptz, bigint);

ALTER TABLE kernel.errors
    DROP COLUMN hourly_at,
    DROP COLUMN hourly,
    DROP COLUMN regressed_release,
    DROP COLUMN regressed_at,
    DROP COLUMN resolved_releases;
