# shellcheck shell=bash
# The other scripts source this file. It makes .venv if there is none and enters it.
#   use_environment EXTRAS     e.g. use_environment test
# It installs again only when pyproject.toml, the constraints or the extras change.

use_environment() {
  local extras="$1" stamp wanted
  if [ ! -x .venv/bin/python ]; then
    make_venv
  fi
  # shellcheck disable=SC1091
  . .venv/bin/activate
  stamp=.venv/.swift_jax_installed
  touch "$stamp"
  wanted="$(cat pyproject.toml constraints.txt | cksum)"
  if ! grep -qxF "$extras $wanted" "$stamp"; then
    echo "installing swift_jax[$extras] into .venv ..."
    python -m pip install --quiet --disable-pip-version-check \
      --constraint constraints.txt --editable ".[$extras]"
    echo "$extras $wanted" >>"$stamp"
  fi
}

make_venv() {
  local is_new='import sys; sys.exit(sys.version_info < (3, 11))'
  if ! python3 -c "$is_new" 2>/dev/null; then
    echo "$0: python3 >= 3.11 is needed, found: $(python3 --version 2>&1)" >&2
    exit 2
  fi
  # Some systems ship python3 without its venv package.
  if ! python3 -m venv .venv >/dev/null; then
    rm -rf .venv
    echo "$0: 'python3 -m venv .venv' failed: is its venv package there?" >&2
    exit 2
  fi
}
