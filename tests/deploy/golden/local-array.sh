#!/bin/bash
# One torchrun on this machine, and in it one process a GPU.
# shellcheck disable=SC2016
set -u
code=0 asked="" child=""
trap 'asked=yes; if [ -n "$child" ]; then kill -TERM "$child"; fi' TERM INT HUP

# train RUN LOG COMMAND...: a signal is handed on to the command, which saves and ends; RUN's exit file says how.
train() {
  local run=$1 log=$2 ended=0
  shift 2
  if [ -n "$asked" ]; then return; fi
  touch "$run/logs/.began"
  "$@" >> "$log" 2>&1 &
  child=$!
  while true; do
    ended=0
    wait "$child" || ended=$?  # which a signal ends too
    if ! kill -0 "$child" 2> /dev/null; then break; fi
  done
  child=""
  echo "$(date +%FT%T) ended: $ended" >> "$log"
  if [ "$ended" != 0 ]; then code=1; fi
  if [ -n "$asked" ]; then ended=cancelled; fi
  leave "$run" "$ended"
}
# Written whole: who asks sees no half of it.
leave() {
  echo "$2" > "$1/logs/exit.tmp"
  mv "$1/logs/exit.tmp" "$1/logs/exit"
}

python=/opt/python
torchrun=(
  --nnodes=1
  --nproc-per-node=1
  --max-restarts=3
  --rdzv-backend=c10d
  '--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1'
  --rdzv-endpoint=localhost:0
  --rdzv-id=demo
)
export PYTHONUNBUFFERED=1
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=60

arguments=(
  train
  imagenet-msdnet-step4
  --set run.epochs=100
  --set seed=0
  --run-folder /runs/d/seed-0
)
train /runs/d/seed-0 /runs/d/logs/job-0.log "$python" -m torch.distributed.run "${torchrun[@]}" \
  --no-python sh -c 'exec "$@" >> "$0-$RANK.log" 2>&1' /runs/d/seed-0/logs/rank "$python" -m trainer "${arguments[@]}"

arguments=(
  train
  imagenet-msdnet-step4
  --set run.epochs=100
  --set seed=1
  --run-folder /runs/d/seed-1
)
train /runs/d/seed-1 /runs/d/logs/job-1.log "$python" -m torch.distributed.run "${torchrun[@]}" \
  --no-python sh -c 'exec "$@" >> "$0-$RANK.log" 2>&1' /runs/d/seed-1/logs/rank "$python" -m trainer "${arguments[@]}"

if [ -n "$asked" ]; then code=cancelled; fi
leave /runs/d "$code"
