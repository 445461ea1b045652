#!/usr/bin/env bash
# Watch the demo model write with SWIFT: makes the environment if needed, then
# runs plain decoding and SWIFT on the same prompts and compares the text.
#   launch/demo.sh [--config.FIELD=VALUE ...]
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
use_environment test
exec python launch/demo.py --config=configs/demo.py "$@"
