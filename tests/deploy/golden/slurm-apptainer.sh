#!/bin/bash
#SBATCH --job-name=step4
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=64
#SBATCH --mem=512G
#SBATCH --time=1440
#SBATCH --array=0-2
#SBATCH --signal=B:USR1@180
#SBATCH --open-mode=append
#SBATCH --output="/runs/step 4/logs/job-%a.log"
#SBATCH --requeue
#SBATCH --no-kill
# shellcheck disable=SC1091,SC2016

# One torchrun a node, and in it one process a GPU; they meet at the first node.
set -u
# USR1 comes before the limit of time and before a preemption: the run saves, and the job goes back into the queue.
# TERM comes from a cancel: the run saves, and the job is over. What copies data is ended by both.
told="" cancelled="" handed="" step="" code=0
hand_on() {
  if [ -z "$step" ]; then return; fi
  handed=yes
  kill -USR1 "$step" 2> /dev/null
}
trap 'told=yes; hand_on' USR1
trap 'cancelled=yes; hand_on' TERM
# Until the step in the background has ended: a signal ends bash's wait too.
follow() {
  step=$! handed=""
  if [ -n "$told$cancelled" ] && [ -z "$handed" ]; then hand_on; fi
  while true; do
    code=0
    wait "$step" || code=$?
    if ! kill -0 "$step" 2> /dev/null; then break; fi
  done
  step=""
}

python=python3
run='/runs/step 4'
data=/data/imagenet
origin='/runs/first/seed-{seed}'
arguments=(
  train
  imagenet-msdnet-step4
  --set run.epochs=100
)
seeds=(0 1 2)
seed=${seeds[$SLURM_ARRAY_TASK_ID]}
run+="/seed-$seed"
origin=${origin//\{seed\}/$seed}
logs="$run/logs"
mkdir -p "$logs"
began="$logs/.began"
touch "$began"
refused="$logs/refused"
rm -f "$refused"

export NCCL_DEBUG=WARN
export PYTHONUNBUFFERED=1
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120
export WHO='it'"'"'s me'

# Where the nodes are, as Slurm knows them: their names need not resolve.
declare -A address=()
while read -r line; do
  if [[ $line =~ NodeName=([^ ]+).*NodeAddr=([^ ]+) ]]; then address[${BASH_REMATCH[1]}]=${BASH_REMATCH[2]}; fi
done < <(scontrol --oneliner show node "$SLURM_JOB_NODELIST")
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
EARLYBIRD_ADDRESSES=""
for node in "${nodes[@]}"; do EARLYBIRD_ADDRESSES+="${address[$node]:-$node} "; done
export EARLYBIRD_ADDRESSES
head=${EARLYBIRD_ADDRESSES%% *}

arguments+=(--data "$data" --from "$origin" --set "seed=$seed" --run-folder "$run")
port=$((29400 + SLURM_JOB_ID % 1000))
torchrun=(
  --nnodes=6:8
  --nproc-per-node=8
  --max-restarts=3
  --rdzv-backend=c10d
  '--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1'
  --rdzv-endpoint="$head:$port"
  --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
  --no-python sh -c 'exec "$@" >> "$0-$RANK.log" 2>&1' "$logs/rank"
  "$python" -m trainer "${arguments[@]}"
)
launch=(
  srun
  --cpu-bind=none
  --ntasks-per-node=1
  --no-kill
  --kill-on-bad-exit=0
  --cpus-per-task=64
  apptainer exec --nv --bind "$run:$run" --bind "$(dirname "$data"):$(dirname "$data")" --bind "$(dirname "$origin"):$(dirname "$origin")" /images/earlybird.sif
  sh -c 'set -eu
endpoint=no
if [ "$SLURM_NODEID" = 0 ]; then endpoint=yes; fi
address=$(echo "$EARLYBIRD_ADDRESSES" | cut -d " " -f $((SLURM_NODEID + 1)))
python=$1
shift
exec "$python" -m torch.distributed.run --local-addr="$address" --rdzv-conf="is_host=$endpoint" "$@"
' sh "$python" "${torchrun[@]}"
)
echo "$(date +%FT%T) job $SLURM_JOB_ID start ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST"
if [ -z "$told$cancelled" ]; then
  "${launch[@]}" &
  follow
fi

# torchrun ends with 1 whatever its processes end with: what the run itself says decides.
state() { scontrol --oneliner show job "$SLURM_JOB_ID" | grep -o 'JobState=[A-Z_]*' | cut -d = -f 2; }
status=""
if [ "$run/summary.json" -nt "$began" ]; then
  status=$(sed -n 's/^ *"status": "\([a-z]*\)".*/\1/p' "$run/summary.json")
fi
# A node that fails takes the step with it, often before Slurm misses the node. So what was under way is tried again,
# but not what was refused or diverged, nor what did not come to a checkpoint three times in a row.
is_worth_another_start() {
  local failures=0
  local lost='State=[A-Z+]*([*]|DOWN|NOT_RESPONDING)'
  if [ "$run/log.jsonl" -nt "$began" ] && tail -n 1 "$run/log.jsonl" | grep -q '"diverged"'; then return 1; fi
  if scontrol --oneliner show node "$SLURM_JOB_NODELIST" | grep -Eq "$lost"; then return 0; fi
  if ! [ "$run/log.jsonl" -nt "$began" ]; then return 1; fi
  if [ -e "$logs/.failures" ] && ! [ "$run/checkpoints" -nt "$began" ]; then failures=$(< "$logs/.failures"); fi
  echo $((failures + 1)) > "$logs/.failures"
  [ "$failures" -lt 2 ]
}
echo "$(date +%FT%T) ended: ${status:-without a summary}, srun $code"
case $status in completed | stopped) exit 0 ;; esac
if [ -e "$refused" ]; then
  echo "refused: $(< "$refused")"
  exit 1
fi
# Where Slurm ends the job itself, cancelled or put back for a node that failed, nothing is left to do: TERM came too, a
# cancel would take it out of the queue, and a requeue bring back what someone cancelled.
if [ "$(state)" != RUNNING ]; then exit 1; fi
if [ -n "$cancelled" ]; then
  scancel "$SLURM_JOB_ID"
  sleep 60
elif [ -n "$told" ] || [ "$status" = preempted ] || is_worth_another_start; then
  if scontrol requeue "$SLURM_JOB_ID"; then sleep 600; fi
fi
exit 1
