"""The line under an error of a command: what to run next. The first row that fits counts; an error's own notes win.

A row has the class or code of an error, words of its message, and a command; empty where there is none to run.
"""

from app.kernel.product import NAME

REPORT = f"{NAME} support-bundle"

HINTS: tuple[tuple[str, str, str], ...] = (
    # configuration
    ("Misconfigured", "(command line)", ""),
    ("Misconfigured", "PostgreSQL at ", "doctor --only postgresql"),
    ("Misconfigured", "no PostgreSQL server is configured", "config explain postgres.host"),
    ("Misconfigured", "recipients", "config explain sentinel.notify_urls"),
    ("Misconfigured", "psql is not installed", ""),
    ("Misconfigured", "logger.output", "config explain logger.output"),
    ("Misconfigured", "the signing keys in the database", "doctor --only signing-keys"),
    ("Misconfigured", "telemetry.otlp_protocol", "config explain telemetry.otlp_protocol"),
    ("Misconfigured", "", "doctor --only settings --only secrets"),
    # migrations
    ("Conflict", "pending, the first is", "migrate up"),
    ("Unavailable", "older than this command", "migrate up"),
    ("Unavailable", "has been migrating for", "doctor --only migrations"),
    ("BAD_MIGRATION", "", "migrate status"),
    ("MIGRATION_FAILED", "does not let this role", "doctor --only privileges"),
    ("MIGRATION_FAILED", "", "migrate plan"),
    # what is not there
    ("Unavailable", " is in use", "doctor --only ports"),
    ("Unavailable", "embedded PostgreSQL", "doctor --only embedded --only disk"),
    ("Unavailable", " belongs to ", "doctor --only embedded"),
    ("Unavailable", "nothing answers ", "doctor --only ports --only processes"),
    ("Unavailable", "no answer to ", "doctor --only ports --only processes"),
    ("Unavailable", "read-only", "doctor --only replication --only postgresql-settings"),
    (
        "Unavailable",
        "disk of the database is full",
        "db shell -c 'SELECT pg_size_pretty(pg_database_size(current_database()))'",
    ),
    ("RATE_LIMITED", "", ""),
    ("Unavailable", "PostgreSQL at ", "doctor --only postgresql"),
    ("Unavailable", "database", "doctor --only postgresql"),
    ("Unavailable", "connection was lost", "doctor --only postgresql"),
    # unknown names, and states that refuse
    ("NotFound", "there is no setting ", "config show"),
    ("NotFound", "there is no check ", "doctor --list"),
    ("NotFound", "there are no migrations of ", "migrate status"),
    ("NotFound", "there is no queue ", "queues list"),
    ("QUEUE_NOT_FOUND", "", "queues list"),
    ("SCHEDULE_NOT_FOUND", "", "schedules list"),
    ("JOB_NOT_FOUND", "", "jobs list"),
    ("NotFound", "no job has an id ", "jobs list"),
    ("DEAD_LETTER_NOT_FOUND", "", "dead-letters list"),
    ("NotFound", "no dead letter has an id ", "dead-letters list"),
    ("ERROR_NOT_FOUND", "", "errors list"),
    ("NotFound", "no group of errors has an id ", "errors list"),
    ("ACTOR_NOT_FOUND", "", "db shell -c 'SELECT username, type, is_active FROM auth.actors'"),
    ("SCHEDULE_BUSY", "", "jobs list --state leased"),
    ("JOB_RUNNING", "", "jobs list --state leased"),
    ("JOB_EXISTS", "", "jobs list"),
    ("JOB_ENDED", "", "jobs list --state done"),
    ("LAST_SUPERUSER", "", "auth create-superuser"),
    ("OSError", "", "doctor --only disk --only permissions"),
)


def hints(error: BaseException) -> list[str]:
    """Return what to do about an expected error, mostly one command."""
    if notes := getattr(error, "__notes__", None):
        return list(notes)
    names = {kind.__name__ for kind in type(error).__mro__} | {getattr(error, "code", "")}
    text = str(error)
    command = next((command for name, words, command in HINTS if name in names and words in text), "")
    return [f"{NAME} {command}"] if command else []
