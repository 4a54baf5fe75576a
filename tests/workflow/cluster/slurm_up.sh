#!/usr/bin/env bash
# One-node SLURM for the tests: `slurm_up.sh DIR`; slurm_down.sh DIR stops it. Prints nothing but errors.
# Everything (configuration, munge key and socket, state, logs) is in DIR; /etc/slurm gets two links, because the
# executor plugin drops SLURM_CONF from the environment of its jobs. No systemd, no cgroups, no database.
# Root on Debian; packages are installed where missing. Exit 77: cannot be had here (the line says why).
set -euo pipefail
DIR=$1
unavailable() { echo "$*" >&2; exit 77; }
[ "$(id -u)" = 0 ] || unavailable "a one-node SLURM needs root"
if ! { command -v slurmctld && command -v slurmd && command -v sbatch && command -v munged; } >/dev/null; then
  command -v apt-get >/dev/null || unavailable "no slurm-wlm here and no apt-get to install it with"
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >"$log" 2>&1 ||
    unavailable "apt-get cannot install slurm-wlm: $(tail -1 "$log")"
  rm -f "$log"
fi

mkdir -p /etc/slurm
if [ -e /etc/slurm/slurm.conf ]; then
  unavailable "/etc/slurm/slurm.conf is there already: this machine's own SLURM is left alone"
fi

host=$(hostname -s)
mkdir -p "$DIR"/{munge,state,spool,log}
chmod 0755 "$DIR"
chmod 0700 "$DIR/munge"
cd "$DIR"

# munge checks the owners of everything it opens: its key and socket are root's, as the daemons are.
head -c 1024 /dev/urandom > munge/key && chmod 0400 munge/key
# The socket's folder has to be open to its users.
mkdir -p socket && chmod 0755 socket
munged --force --key-file="$DIR/munge/key" --socket="$DIR/socket/munge" --pid-file="$DIR/munge/pid" \
  --log-file="$DIR/munge/log" --seed-file="$DIR/munge/seed" > munge/out 2>&1 || { cat munge/out >&2; exit 1; }

read -r ctld_port slurmd_port < <(python3 - <<'PY'
import socket
free = [socket.socket() for _ in range(2)]
for s in free:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in free))
PY
)
memory=$(( $(awk '/MemTotal/{print $2}' /proc/meminfo) / 1024 ))
cat > slurm.conf <<CONF
ClusterName=passionsr-test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$ctld_port
SlurmdPort=$slurmd_port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$DIR/socket/munge
CredType=cred/munge
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.log
# plugins that need neither cgroups nor systemd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0
ReturnToService=2
# squeue is how Snakemake asks for finished jobs
MinJobAge=600
KillWait=5
AccountingStorageType=accounting_storage/none
# one line per finished job: what the tests read
JobCompType=jobcomp/filetxt
JobCompLoc=$DIR/log/jobcomp.txt
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory Gres=gpu:2 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=24:00:00 State=UP
PartitionName=chosen Nodes=ALL MaxTime=24:00:00 State=UP
CONF
# A GPU must have a device file, or slurmd counts none and the node is drained; nothing opens these.
printf 'NodeName=%s Name=gpu File=/dev/%s\n' "$host" null "$host" zero > gres.conf
touch log/jobcomp.txt
ln -sfn "$DIR/slurm.conf" /etc/slurm/slurm.conf  # a dangling link of a killed test is replaced
ln -sfn "$DIR/gres.conf" /etc/slurm/gres.conf

slurmctld
for _ in $(seq 100); do scontrol ping 2>/dev/null | grep -q UP && break; sleep 0.1; done
slurmd
for _ in $(seq 100); do
  case "$(sinfo -h -n "$host" -p debug -o %T 2>/dev/null)" in idle) break ;; esac
  sleep 0.2
done
timeout 60 srun -n1 -t1 --mem=50 true || { sinfo >&2; tail -n 5 log/*.log >&2; exit 1; }
