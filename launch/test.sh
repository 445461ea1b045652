#!/usr/bin/env bash
# Runs the whole test suite; makes the environment first if needed.
#   launch/test.sh [PYTEST_ARGUMENT ...]
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
use_environment test
exec python -m pytest "$@"
