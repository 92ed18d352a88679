#!/usr/bin/env bash
# tpu_scripts/run.sh NAME ZONE CONFIG [key=value ...]: a table on a single-host TPU VM; run it again to go on
set -euo pipefail
[ $# -ge 3 ] || { sed -n 2p "$0" >&2; exit 2; }
name=$1 zone=$2
shift 2
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" \
  --command "cd fedjax_rai && .venv/bin/fedjax-rai table $(printf '%q ' "$@")"
