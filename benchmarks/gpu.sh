#!/usr/bin/env bash
# Tests and times pydl on this machine's GPU: builds it beside the installed torch (nothing is fetched), runs the tests
# on the GPU, then times every op beside torch eager and torch.compile. The table comes last; the full record goes to
# benchmarks/results/<GPU>.json, or into $OUT where that is set. Nine minutes at most.
#
#   benchmarks/gpu.sh                    # the Triton kernels
#   PYDL_BACKEND=cuda benchmarks/gpu.sh  # the CUDA library, which needs nvcc
#   ONLY=conv benchmarks/gpu.sh          # only the cases whose name holds "conv"; TESTS=0 leaves the tests out
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
backend=${PYDL_BACKEND:-triton}
out=${OUT:-benchmarks/results}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$out"
unset PYDL_BACKEND  # the tests choose for themselves

echo "== build (${SECONDS}s)"
[ "$backend" = cuda ] && export PYDL_CUDA=1 || export PYDL_CUDA=${PYDL_CUDA:-0}
"$python" -m pip install -q --no-build-isolation --no-deps --no-index --target "$scratch/site" . >"$out/build.log" 2>&1 ||
  { tail -n 30 "$out/build.log"; exit 1; }
# the built package, not the source folder, which PYTHONSAFEPATH keeps off the path
export PYTHONPATH="$scratch/site" PYTHONSAFEPATH=1 TRITON_CACHE_DIR="$scratch/triton" TORCHINDUCTOR_CACHE_DIR="$scratch/inductor"

status=0
if [ "${TESTS:-1}" = 1 ]; then
  echo "== tests (${SECONDS}s)"
  parallel=$("$python" -c 'import xdist' 2>/dev/null && echo "-n 6" || true)
  # shellcheck disable=SC2086  # two words
  timeout "${TEST_SECONDS:-270}" "$python" -m pytest tests -q -k "$backend" $parallel -p no:cacheprovider \
    >"$out/tests.log" 2>&1
  status=$?
  grep -E "^(FAILED|ERROR)" "$out/tests.log" | head -n 40
  tail -n 1 "$out/tests.log"
fi

echo "== timings (${SECONDS}s)"
left=$((525 - SECONDS))
timeout "$((left + 10))" "$python" benchmarks/gpu.py --backend "$backend" --out "$out" --seconds "$left" --only "${ONLY:-}" ||
  status=1
exit "$status"
