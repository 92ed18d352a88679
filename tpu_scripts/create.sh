#!/usr/bin/env bash
# tpu_scripts/create.sh NAME ZONE TYPE RUNTIME, e.g. create.sh rai us-east5-b v6e-8 v2-alpha-tpuv6e
set -euo pipefail
[ $# -eq 4 ] || { sed -n 2p "$0" >&2; exit 2; }
name=$1 zone=$2 type=$3 runtime=$4
gcloud compute tpus queued-resources create "$name" --node-id "$name" --zone "$zone" \
  --accelerator-type "$type" --runtime-version "$runtime"
while true; do
  state=$(gcloud compute tpus queued-resources describe "$name" --zone "$zone" --format 'value(state.state)')
  case $state in
    ACTIVE) break ;;
    FAILED | SUSPENDED) echo "$name is $state" >&2; exit 1 ;;
    *) echo "$name is $state, waiting ..." >&2; sleep 30 ;;
  esac
done
