# lets the agent of backups stream WAL, from the networks of the server
echo "host replication app samenet scram-sha-256" >> "$PGDATA/pg_hba.conf"
