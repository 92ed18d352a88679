#!/usr/bin/env bash
# tpu_scripts/accelerator.sh [--dry-run] [OUT], or make accelerator: on a machine with a GPU or TPU, check it against the
# CPU, then measure it. Ends within 10 minutes; a part that fails or takes too long is named at the end, the others run.
#
# It needs
#   Python 3.11 or newer with    pip install -e ".[test,cuda13]"    or cuda12 or tpu in place of cuda13;
#   for the peer, on a GPU       pip install torch peft             without them rounds and decoding are ours alone.
# It reads from the environment, all of it optional,
#   PYTHON   the Python of that installation (python3);
#   DRY=1    as --dry-run: print the commands with their limits, run nothing;
#   TOTAL    seconds for everything (580);
#   PARTS    names of parts, with * for any letters and blanks between, as in 'round_* cai_1b' (all but the further ones,
#            which do not fit into ten minutes beside the others or need more: they are named below);
#   SMALL=1  every benchmark of the smallest sizes, on any machine: whether each begins, ends and writes;
#   VLLM_PYTHON  the Python of an environment that has vLLM, for the part that measures it;
#   XLA_FLAGS, XLA_PYTHON_CLIENT_PREALLOCATE (false), JAX_COMPILATION_CACHE_DIR, which are handed on.
# It writes to OUT (runs/accelerator-DATE-TIME), each as it comes:
#   machine.txt   the device and the versions;
#   parts.jsonl   how each part ended: done, failed, timed out, left out, not started;
#   PART.jsonl    the numbers of a benchmark, or PART.txt, what the tests say; PART.log what went to standard error.
set -u
cd "$(dirname "$0")/.." || exit 2

python=${PYTHON:-python3} dry=${DRY:-} total=${TOTAL:-580} wanted=${PARTS:-} small=${SMALL:-}
if [ "${1:-}" = --dry-run ]; then
  dry=1
  shift
fi
out=${1:-runs/accelerator-$(date +%Y%m%d-%H%M%S)}
backend=gpu memory=0 peer=yes missing='' running='' failed=()

refuse() {  # refuse TEXT
  echo "$1" >&2
  exit 2
}

probe() {  # read what the machine has
  local key value
  "$python" tpu_scripts/probe.py >"$out/machine.txt" 2>"$out/machine.log" ||
    refuse "$python tpu_scripts/probe.py failed, see $out/machine.log: $(tail -n 1 "$out/machine.log")"
  while IFS='=' read -r key value; do
    case $key in
      backend) backend=$value ;;
      memory) memory=$value ;;
      peer) peer=$value ;;
      missing) missing=$value ;;
    esac
  done <"$out/machine.txt"
  [ -z "$missing" ] || refuse "$python has no ${missing//,/, }: $(sed -n 's/^#   Python .* with *//p' "$0")"
  [ -n "$small" ] || [ "$backend" != cpu ] ||
    refuse "jax sees a CPU only: this is for a machine with a GPU or TPU, and with jax for it"
}

note() {  # note PART STATE CODE SECONDS: how a part ended
  printf '{"part": "%s", "state": "%s", "exit": %s, "seconds": %s}\n' "$@" >>"$out/parts.jsonl"
  echo "$1: $2, $4 s"
  case $2 in done | 'left out') ;; *) failed+=("$1 ($2)") ;; esac
}

finish() {
  [ "${#failed[@]}" -gt 0 ] || exit 0
  echo "not done: $(printf '%s, ' "${failed[@]}" | sed 's/, $//'); see $out" >&2
  exit 1
}

interrupted() {
  [ -z "$running" ] || kill "$running" 2>/dev/null
  echo "interrupted; what is done is in $out" >&2
  exit 130
}

is_wanted() {  # is_wanted PART: by PARTS or, without, where it is none of the further ones
  local pattern
  if [ -z "$wanted" ]; then
    [ -z "$further" ]
    return
  fi
  set -f  # a pattern is no name of files
  for pattern in $wanted; do
    # shellcheck disable=SC2053
    [[ $1 != $pattern ]] || { set +f; return 0; }
  done
  set +f
  return 1
}

smallest() {  # smallest WORK: options that make it small; of an option that stands twice the last one counts
  local every='--model tiny --dtype float32 --attention xla --unroll none --warmup 0 --repeats 1'
  case $1 in
    round) echo "$every --steps 1 --batch 2 --length 16" ;;
    generate) echo "$every --rows 2 --prompt 4 --new 4" ;;
    cai) echo "$every --prompts 4 --prompt 4 --new 4 --iterations 1 --batch 2" ;;
    score) echo "$every --pairs 8 --length 16 --batch 4" ;;
  esac
}

part() {  # part NAME SECONDS GIB ARGUMENT...: python -m ARGUMENT..., so long at most, if the device has such a memory
  local name=$1 limit=$2 need=$3 began=$SECONDS left=$((total - SECONDS)) written=txt code argument names=''
  local arguments=()
  shift 3
  is_wanted "$name" || return 0
  if [ -n "$small" ]; then
    need=0 limit=$total
    # shellcheck disable=SC2046
    [ "$1" != fedjax_rai.bench ] || set -- "$@" $(smallest "$2")
  fi
  if [ -n "$dry" ]; then
    printf '%-22s %3d s  python -m%s\n' "$name" "$limit" "$(printf ' %q' "$@")"
    return
  fi
  if [ "$memory" -gt 0 ] && [ "$need" -gt "$memory" ]; then
    note "$name" 'left out' null 0
    return
  fi
  if [ "$left" -lt 1 ]; then
    note "$name" 'not started' null 0
    return
  fi
  for argument in "$@"; do
    if [ -n "$names" ] && [ "$peer" != yes ]; then  # of a peer that is not there
      names=''
      continue
    fi
    names=''
    case $argument in
      --peer)
        names=1
        [ "$peer" = yes ] || continue
        ;;
      cudnn) [ "$backend" = gpu ] || argument=splash ;;
      fedjax_rai.bench) written=jsonl ;;
    esac
    arguments+=("$argument")
  done
  limit=$((limit < left ? limit : left))
  timeout -k 5 "$limit" "$python" -m "${arguments[@]}" >"$out/$name.$written" 2>"$out/$name.log" &
  running=$!
  wait "$running"
  code=$?
  running=''
  case $code in
    0) note "$name" 'done' 0 $((SECONDS - began)) ;;
    124 | 137) note "$name" 'timed out' "$code" $((SECONDS - began)) ;;
    *) note "$name" failed "$code" $((SECONDS - began)) ;;
  esac
  [ "$code" -eq 0 ] || tail -n 3 "$out/$name.log"
  tail -n 2 "$out/$name.$written"
}

if [ -z "$dry" ]; then
  # The tests' own flags are for CPUs; memory is taken as it is needed, as several processes share the device.
  export XLA_FLAGS="${XLA_FLAGS:-}" XLA_PYTHON_CLIENT_PREALLOCATE="${XLA_PYTHON_CLIENT_PREALLOCATE:-false}"
  export PYTHONPATH=$PWD
  mkdir -p "$out" || exit 2
  probe
  trap interrupted INT TERM
  [ "$peer" = yes ] || echo "the peer is not measured: torch with a GPU, transformers and peft are not all there"
fi

# Nothing of the tests is timed, so they run side by side. Of pytest's plugins one refuses to, where it is installed.
tests=(tests/accelerator/test_device.py tests/model/test_attention.py tests/model/test_attention_kernels.py)
further=''
part tests 160 0 pytest -q -p no:benchmark -n 12 -rP "${tests[@]}"

# The commands of docs/performance.md, in its order. GIB: what was seen to be held, by both where there is a peer; with a
# merged adapter at 8B the kernels once more, which was not seen.
round=(fedjax_rai.bench round --model)
generate=(fedjax_rai.bench generate --model)
unrolled=(--attention cudnn --unroll full)
part round_1b_peer 100 57 "${round[@]}" 1B --clients 2 --steps 5 "${unrolled[@]}" --peer torch --repeats 2 --json
part round_1b_small_peer 90 20 "${round[@]}" 1B --clients 5 --steps 10 --batch 1 --chunk 5 --peer torch --repeats 2 --json
part generate_1b_peer 90 10 "${generate[@]}" 1B --unroll full --peer torch --repeats 2 --json
part round_8b_cudnn 120 44 "${round[@]}" 8B --clients 1 --steps 5 --remat full --attention cudnn --repeats 2 --json
part generate_8b 90 18 "${generate[@]}" 8B --repeats 2 --json
part cai_1b 90 30 fedjax_rai.bench cai --model 1B --prompts 64 --attention cudnn --warmup 0 --repeats 1 --json
part score_1b 90 10 fedjax_rai.bench score --model 1B --pairs 20000 --warmup 0 --repeats 1 --json
job=(--rows 64 --new 256 --answers 520)
part generate_1b_advbench 90 12 "${generate[@]}" 1B "${job[@]}" --warmup 0 --repeats 1 --json
part generate_1b 70 8 "${generate[@]}" 1B --adapter apart,merged --repeats 2 --json
part round_135m_mapped 60 0 "${round[@]}" 135M --clients 5 --steps 10 --chunk 5 --repeats 2 --json

# Only where PARTS names them. The paper's whole round has 1,024,000 tokens: twice 80 s at the 13,100 a second that one
# H200 was measured at, as the first one compiles. vLLM has an environment of its own.
further=yes
part round_1b 60 18 "${round[@]}" 1B --clients 2 --steps 5 --attention cudnn --repeats 2 --json
part round_1b_small 60 9 "${round[@]}" 1B --clients 5 --steps 10 --batch 1 --repeats 2 --json
part generate_1b_batches 90 12 "${generate[@]}" 1B "${job[@]}" --order batches --warmup 0 --repeats 1 --json
part cai_1b_merged 90 34 fedjax_rai.bench cai --model 1B --prompts 64 --attention cudnn --adapter merged --repeats 1 --json
part generate_8b_merged 60 36 "${generate[@]}" 8B --adapter merged --repeats 2 --json
part round_8b_paper 330 44 "${round[@]}" 8B --remat full --attention cudnn --warmup 0 --repeats 1 --json
vllm=(--peer=vllm --vllm-python "${VLLM_PYTHON:-python}")
part generate_1b_vllm 240 24 "${generate[@]}" 1B "${vllm[@]}" --repeats 2 --json
part generate_8b_vllm 300 60 "${generate[@]}" 8B "${vllm[@]}" --repeats 2 --json
[ -n "$dry" ] || finish
