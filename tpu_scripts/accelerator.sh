#!/usr/bin/env bash
# tpu_scripts/accelerator.sh [OUT]: on a machine with a GPU or TPU, check it against the CPU, then measure it.
# Every part writes OUT/NAME.txt as it ends. Needs `pip install -e ".[test]"` with jax for the device; torch and peft for the peer.
set -u
cd "$(dirname "$0")/.." || exit 1
out=${1:-runs/accelerator}
mkdir -p "$out"
python=${PYTHON:-python}
# The tests' own settings are for CPUs; memory is taken as it is needed, as several processes share the device.
export XLA_FLAGS="${XLA_FLAGS:-}" XLA_PYTHON_CLIENT_PREALLOCATE=${XLA_PYTHON_CLIENT_PREALLOCATE:-false} PYTHONPATH=$PWD

part() {  # part NAME SECONDS ARGUMENT...: run it with a limit; its output goes to a file, its end to the screen
  local name=$1 limit=$2
  shift 2
  if timeout "$limit" "$python" -m "$@" >"$out/$name.txt" 2>"$out/$name.err"; then echo "$name: done in ${SECONDS}s"
  else echo "$name: failed with $?, see $out/$name.err"; tail -n 3 "$out/$name.err"; fi
  tail -n 2 "$out/$name.txt"
}

round=(fedjax_rai.bench round --repeats 2)
decode=(fedjax_rai.bench generate --repeats 3)
part tests 150 pytest -q -s tests/accelerator tests/model/test_attention.py tests/model/test_attention_kernels.py
part round_1b 150 "${round[@]}" --model 1B --clients 2 --steps 10 --peer
part round_1b_cudnn 90 "${round[@]}" --model 1B --clients 2 --steps 10 --attention cudnn
part round_1b_small 120 "${round[@]}" --model 1B --clients 5 --steps 10 --batch 1 --peer
part round_1b_small_mapped 60 "${round[@]}" --model 1B --clients 5 --steps 10 --batch 1 --chunk 5
part generate_1b 120 "${decode[@]}" --model 1B --peer
part generate_1b_64 60 "${decode[@]}" --model 1B --rows 64
part round_135m 60 "${round[@]}" --model 135M --clients 5 --steps 10
part round_135m_mapped 60 "${round[@]}" --model 135M --clients 5 --steps 10 --chunk 5
part round_8b 150 "${round[@]}" --model 8B --clients 1 --steps 5 --remat full
part generate_8b 120 "${decode[@]}" --model 8B
