#!/usr/bin/env bash
# Tests and times pydl on this machine's GPU: builds it beside the installed torch (nothing is fetched), runs the tests
# of the ops on the GPU with each backend that is there (Triton, and the CUDA library where nvcc built it), then times
# every op beside torch eager and torch.compile. Eight minutes at most.
#
#   benchmarks/gpu.sh                       # all of it
#   ONLY=conv benchmarks/gpu.sh             # only the cases whose name holds "conv"
#   BACKENDS=triton TESTS=0 benchmarks/gpu.sh
#   DRY=1 benchmarks/gpu.sh                 # on the CPU, with tiny sizes and a few tests: does the script itself work?
#
# Each stage has a time limit of its own and writes as it goes to $OUT (default benchmarks/results), eight files in all:
# build.log, tests-<file>.log, timings.log, and <GPU>.json after each case. A stage that fails does not stop the next.
# The short table comes last.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
backends=${BACKENDS:-triton,cuda}
out=${OUT:-benchmarks/results}
dry=${DRY:-0}
mkdir -p "$out" && out=$(cd "$out" && pwd)
scratch=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$scratch"' EXIT
unset PYDL_BACKEND # the tests choose for themselves

status=0
stage() { printf '== %s (%ss)\n' "$1" "$SECONDS"; }
# limited SECONDS COMMAND...: interrupted in time to print what it has found, killed if that does not help
# (a shell's background jobs ignore interrupts unless told otherwise)
limited() { timeout --signal=INT --kill-after=15 "$1" env --default-signal=INT "${@:2}"; }

# ---- build. The CUDA library is built for this GPU alone; without it Triton is still tested and timed.
build() {
  limited "$1" "$python" -m pip install -q --no-build-isolation --no-deps --no-index --target "$scratch/site" --upgrade .
}
stage "build"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null
capability=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())' 2>/dev/null)
[ -n "$capability" ] && export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability}
export MAX_JOBS=${MAX_JOBS:-$(nproc)}
if [ "$dry" = 1 ]; then
  export TRITON_INTERPRET=1 # and the installed pydl
elif ! build "${BUILD_SECONDS:-150}" >"$out/build.log" 2>&1; then
  tail -n 15 "$out/build.log"
  echo "the build failed; once more without the CUDA library" | tee -a "$out/build.log"
  status=1
  PYDL_CUDA=0 build 90 >>"$out/build.log" 2>&1 || { tail -n 30 "$out/build.log"; exit 1; }
fi
# the built package, not the source folder, which PYTHONSAFEPATH keeps off the path
[ "$dry" = 1 ] || export PYTHONPATH="$scratch/site"
export PYTHONSAFEPATH=1 TRITON_CACHE_DIR="$scratch/triton" TORCHINDUCTOR_CACHE_DIR="$scratch/inductor"
(cd "$scratch" && "$python" -m pydl info 2>&1) | tee -a "$out/build.log"

# ---- tests, the ops side by side, while other processes compile what will be timed
stage "tests"
seconds=${TEST_SECONDS:-140}
common=(--backends "$backends" --only "${ONLY:-}")
[ "$dry" = 1 ] && common+=(--dry-run)
preparing=()
for i in 0 1 2 3; do
  limited "$seconds" "$python" benchmarks/gpu.py "${common[@]}" --prepare "$i/4" --seconds "$((seconds - 20))" \
    >>"$out/build.log" 2>&1 &
  preparing+=($!)
done
if [ "${TESTS:-1}" = 1 ]; then
  # ids of the fixture `device`: triton and cuda, not cuda-on-host, which is a CPU
  select="(${backends//,/ or }) and not host"
  "$python" -c 'import expecttest' 2>/dev/null || { select="$select and not opcheck" && echo "no expecttest: opcheck is left out"; }
  marks="not slow and not triton and not triton_compile and not cuda_on_host and not cuda_compile"
  if [ "$dry" = 1 ]; then
    select="triton-interpreted and (test_empty or test_scalar or test_unbatched)" marks="triton and not slow"
  fi
  parallel=$("$python" -c 'import xdist' 2>/dev/null && [ "$dry" != 1 ] && echo "-n 3" || true)
  files="$("$python" -c 'import pydl.ops._triton as t; print(*t.ops())') nn"
  testing=()
  for file in $files; do
    bodies=$(ls tests/ops/test_"$file"*.py)
    [ "$file" = nn ] && bodies="tests/ops/test_gpu.py $bodies" # short ones, in one log
    # shellcheck disable=SC2086  # several words
    limited "$seconds" "$python" -m pytest $bodies -q -m "$marks" -k "$select" $parallel -rfE --tb=short \
      -p no:cacheprovider >"$out/tests-$file.log" 2>&1 &
    testing+=($!)
  done
  for pid in "${testing[@]}"; do
    wait "$pid"
    code=$?
    [ $code = 0 ] || [ $code = 5 ] || status=1 # 5: nothing was selected
  done
fi
wait "${preparing[@]}"

# ---- one small call of every CUDA kernel under NVIDIA's checker
watched=()
for tool in memcheck racecheck; do
  [ "${TESTS:-1}" = 1 ] && [[ $backends == *cuda* ]] || continue
  if [ "$dry" = 1 ]; then
    "$python" benchmarks/gpu_memory.py --device cpu >>"$out/build.log" 2>&1 || status=1
  elif ! command -v compute-sanitizer >/dev/null; then
    watched+=("$tool: not run, compute-sanitizer is not on the path")
  else
    printf -- '-- compute-sanitizer %s\n' "$tool" >>"$out/build.log"
    limited "${SANITIZER_SECONDS:-45}" compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" benchmarks/gpu_memory.py >>"$out/build.log" 2>&1
    code=$?
    # a machine whose runtime lets no checker in refuses the device; that is no fault of the kernels
    if grep -q "Device not supported" "$out/build.log"; then
      watched+=("$tool: not run, compute-sanitizer refused the device")
    else
      [ "$code" = 0 ] || status=1
      watched+=("$tool: exit $code, $(grep -E "ERROR SUMMARY|RACECHECK SUMMARY|gave torch" "$out/build.log" | tail -n 1)")
    fi
  fi
done

# ---- timings, alone on the machine
stage "timings"
left=$((${TOTAL_SECONDS:-450} - SECONDS))
limited "$((left + 10))" "$python" benchmarks/gpu.py "${common[@]}" --out "$out" --seconds "$left" \
  >"$out/timings.log" 2>&1 || status=1

# ---- the end of the output is what a caller sees
stage "results"
for file in ${files:-}; do
  grep -E "^(FAILED|ERROR)" "$out/tests-$file.log" | cut -c 1-160 | head -n 12
done
for file in ${files:-}; do
  printf '%-24s %s\n' "test_$file" "$(tail -n 1 "$out/tests-$file.log")"
done
printf '%s\n' ${watched[@]+"${watched[@]}"}
cat "$out/timings.log"
echo "exit status $status after ${SECONDS}s"
exit $status
