#!/usr/bin/env bash
# Everything that is measured on a GPU, in one run of under ten minutes: benchmarks/gpu.sh [folder] [python]
# The tables come to lie in the folder (results/gpu by default); the last one printed is the throughput.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-results/gpu}
python=${2:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$folder"
"$python" benchmarks/attack_cost.py --encoder resnet18 --size 128 --batch 64 --output "$folder/attack_cost.csv"
"$python" benchmarks/gpu.py --output "$folder/throughput.csv"
