"""All checks of the kernel, in the order in which they are shown."""

from app.kernel.doctor import (
    Check,
    backup_machine,
    backups,
    broker,
    configuration,
    embedded,
    machine,
    network,
    postgresql,
    redis,
    replicas,
    schema,
    work,
)

CHECKS: tuple[Check, ...] = (
    *configuration.CHECKS,
    *machine.CHECKS,
    *postgresql.CHECKS,
    *replicas.CHECKS,
    *embedded.CHECKS,
    *schema.CHECKS,
    *work.CHECKS,
    *backups.CHECKS,
    *backup_machine.CHECKS,
    *broker.CHECKS,
    *network.CHECKS,
    *redis.CHECKS,
)
