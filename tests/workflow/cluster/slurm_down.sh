#!/usr/bin/env bash
# Stops what slurm_up.sh started in DIR, by pid file; removes DIR.
set -uo pipefail
DIR=$1
timeout 20 scancel --user=root 2>/dev/null
for file in slurmd.pid slurmctld.pid munge/pid; do
  [ -s "$DIR/$file" ] || continue
  pid=$(cat "$DIR/$file")
  kill "$pid" 2>/dev/null
  for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  kill -9 "$pid" 2>/dev/null
done
for file in slurm.conf gres.conf; do
  [ "$(readlink "/etc/slurm/$file")" = "$DIR/$file" ] && rm -f "/etc/slurm/$file"
done
rm -rf "$DIR"
