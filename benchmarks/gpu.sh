#!/bin/sh
# Figures of a GPU, in order of value, in under 6 minutes: benchmarks/gpu.sh [FOLDER]
# Each part has its own time-out and leaves its own JSON line in FOLDER/figures.jsonl and its output beside it, so that
# a machine that is lent for minutes always gives something. A part whose time-out does not fit into what is left of the
# 6 minutes is left to the next call with the same FOLDER, which makes what has no line yet, and then tries again what
# failed in an earlier call: the last line of a part counts. Needs the package (PYTHONPATH=src will do) on torch 2.11 or
# newer; PYTHON names the interpreter, BUDGET the seconds of a call (350). PRESET=tiny rehearses on a CPU, for which
# SLOWER multiplies the seconds (4 if the CPU is idle).
set -u
cd "$(dirname "$0")/.." || exit 1
folder=${1:-gpu-figures}
python=${PYTHON:-python}
preset=${PRESET:-vit_large}
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$folder/inductor}"
mkdir -p "$folder"
touch "$folder/figures.jsonl"
slower=${SLOWER:-1}
begin=$(date +%s)
budget=$((${BUDGET:-350} * slower))
left=
# parts that failed in earlier calls, whose names the second pass looks for
failed=" $(sed -n 's/^{"part": "\([a-z_]*\)", "status": [1-9].*/\1/p' "$folder/figures.jsonl" | tr '\n' ' ')"

part() { # NAME SECONDS PROGRAM [OPTION ...]
    name=$1 seconds=$(($2 * slower))
    shift 2
    if [ "$pass" = new ]; then
        grep -q "\"part\": \"$name\"" "$folder/figures.jsonl" && return
    else
        case $failed in *" $name "*) ;; *) return ;; esac
        grep -q "\"part\": \"$name\", \"status\": 0," "$folder/figures.jsonl" && return
    fi
    started=$(date +%s)
    [ $((started - begin + seconds)) -le "$budget" ] || { left="$left $name"; return; }
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

step="benchmarks/gpu_step.py --preset $preset" small="benchmarks/gpu_step.py --preset small"
real="benchmarks/real_data.py --preset $preset --steps 20 --warm_up 6"
real_small="benchmarks/real_data.py --preset vit_small"
if [ "$preset" = tiny ]; then
    small=$step
    real="benchmarks/real_data.py --preset tiny --steps 6 --workers 1"
    real_small=$real
fi
parts() { # in order of value
    part step_blocks 110 $step --compile blocks
    part step_eager 35 $step --compile off
    part step_blocks_warm 30 $step --compile blocks
    part step_large_batch 55 $step --compile blocks --batch "${LARGE_BATCH:-100}"
    part real_data 50 $real
    part small_eager 20 $small --compile off
    part small_blocks 50 $small --compile blocks
    part step_middle_batch 50 $step --compile blocks --batch "${MIDDLE_BATCH:-75}"
    part step_packed 90 $step --compile blocks --pack_crops
    part teacher_graph 45 benchmarks/teacher_graph.py --preset "$preset"
    part small_packed 45 $small --compile blocks --pack_crops
    part real_data_small 70 $real_small
    part step_time 40 benchmarks/step_time.py --preset "$preset" --bf16
    part start 150 benchmarks/start.py --preset "$preset"
    part launches 30 benchmarks/launches.py
}

for pass in new failed; do
    parts
done
[ -z "$left" ] || echo "left to the next call of benchmarks/gpu.sh $folder:$left" >&2
