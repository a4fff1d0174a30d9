#!/bin/sh
# All figures of a GPU, in order of value, in under 6 minutes: benchmarks/gpu.sh [FOLDER]
# Each part has its own time-out and leaves its own JSON line in FOLDER/figures.jsonl and its output beside it, so that
# a machine that is lent for minutes always gives something. Needs the package (PYTHONPATH=src will do) on torch 2.11 or
# newer; PYTHON names the interpreter, PRESET=tiny rehearses on a CPU.
set -u
cd "$(dirname "$0")/.." || exit 1
folder=${1:-gpu-figures}
python=${PYTHON:-python}
preset=${PRESET:-vit_large}
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$folder/inductor}"
mkdir -p "$folder"
: > "$folder/figures.jsonl"

part() { # NAME SECONDS PROGRAM [OPTION ...]
    name=$1 seconds=$2
    shift 2
    started=$(date +%s)
    PYTHONPATH="src:benchmarks${PYTHONPATH:+:$PYTHONPATH}" timeout "$seconds" "$python" "$@" \
        > "$folder/$name.txt" 2> "$folder/$name.err"
    status=$?
    line=$(tail -n 1 "$folder/$name.txt")
    case $line in
        "{"*) ;;
        *) line=null ;;
    esac
    echo "{\"part\": \"$name\", \"status\": $status, \"wall_seconds\": $(($(date +%s) - started)), \"figures\": $line}" \
        | tee -a "$folder/figures.jsonl"
}

step="benchmarks/gpu_step.py --preset $preset"
if [ "$preset" = tiny ]; then small="--preset tiny"; else small="--preset small"; fi
part step_eager 60 $step --compile off
part step_blocks 100 $step --compile blocks
part step_blocks_warm 60 $step --compile blocks
part step_packed 90 $step --compile blocks --pack_crops
part step_large_batch 60 $step --compile blocks --batch "${LARGE_BATCH:-100}"
if [ "$preset" = tiny ]; then real="--preset tiny --steps 10 --workers 1"; else real="--preset $preset"; fi
part real_data 80 benchmarks/real_data.py $real
part small_eager 40 benchmarks/gpu_step.py $small --compile off
part small_blocks 60 benchmarks/gpu_step.py $small --compile blocks
[ "$preset" = tiny ] || part real_data_small 60 benchmarks/real_data.py --preset vit_small
part small_packed 60 benchmarks/gpu_step.py $small --compile blocks --pack_crops
part launches 30 benchmarks/launches.py
