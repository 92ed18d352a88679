#!/usr/bin/env bash
# tpu_scripts/setup.sh NAME ZONE
set -euo pipefail
[ $# -eq 2 ] || { sed -n 2p "$0" >&2; exit 2; }
name=$1 zone=$2
root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
archive=$(mktemp) && trap 'rm -f "$archive"' EXIT
git -C "$root" archive --format tar.gz --output "$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$name:fedjax_rai.tar.gz" --zone "$zone" --worker all
# The runtimes' own Python may be too old for jax, so uv brings one.
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all --command '
  set -e
  mkdir -p fedjax_rai && tar -xzf fedjax_rai.tar.gz -C fedjax_rai
  python3 -m pip install --user --quiet uv
  cd fedjax_rai && ~/.local/bin/uv venv --python 3.12 .venv && ~/.local/bin/uv pip install --python .venv -e ".[tpu]"
  .venv/bin/python -c "import jax; print(jax.devices())"'
