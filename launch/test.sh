#!/usr/bin/env bash
# Runs the whole test suite; makes the environment first if needed.
#   launch/test.sh [--nightly] [PYTEST_ARGUMENT ...]
# Two processes run side by side, since tests wait for compilations. --nightly runs
# the tests too that the quick suite leaves out.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
use_environment test
exec python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "$@"
