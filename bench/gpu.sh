#!/usr/bin/env bash
# One stage on a machine with a GPU: bash bench/gpu.sh STAGE [--toy] (docs/performance.md, "On a GPU").
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" bench/gpu.py "$@"
