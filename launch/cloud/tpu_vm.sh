#!/usr/bin/env bash
# Runs launch/evaluate.py on a slice of Cloud TPU VMs: creates it, installs,
# runs on all workers, collects the answers and deletes it.
#   launch/cloud/tpu_vm.sh --name=NAME --zone=ZONE --accelerator_type=v5litepod-16 \
#     --workdir=gs://BUCKET/FOLDER --output=FOLDER [FLAG ...] -- ARGUMENT ...
# The ARGUMENTs are those of launch/evaluate.py. The other flags:
#   --project=ID           default: gcloud's own project
#   --runtime_version=ID   default: the usual version for the accelerator type
#   --repository=URL       the workers clone it; default: this checkout's origin
#   --commit=COMMIT        a commit or tag of it; default: this checkout's HEAD
#   --steps=create,...     of create, install, run, collect, delete; default: all
#   --spot                 a slice that costs less and may be preempted
#   --retries=N            how often a preempted slice is created anew; default: 0
#   --keep                 do not delete the slice
#   --dry_run              print the commands, run none
# A --workdir that is no gs:// lies on the workers, in the checkout unless the path
# is absolute. gcloud reaches several workers only with a key in the ssh-agent:
# ssh-add ~/.ssh/google_compute_engine
# shellcheck disable=SC2329  # the steps are called by their names
set -euo pipefail
# shellcheck source=launch/cloud/common.sh
. "$(dirname "$0")/common.sh"

flags='name zone project accelerator_type runtime_version repository commit'
flags="$flags workdir output retries steps"
switches='dry_run keep spot'
name='' zone='' project='' accelerator_type='' runtime_version=''
repository='' commit='' workdir='' output='' retries=0
all_steps=create,install,run,collect,delete
steps="$all_steps"
dry_run='' keep='' spot=''
failed='' status=0

main() {
  local step
  take_flags "$flags" "$switches" "$@"
  check_flags
  where=(--zone="$zone" ${project:+"--project=$project"})
  # An interrupt ends the command that is under way. That is a failure like any
  # other: the slice is deleted after it, since it costs as long as it is there.
  trap : INT HUP
  for step in create install run; do
    if has_step "$step"; then take "$step"; fi
  done
  while [ "$failed" = run ] && [ "$retries" -gt 0 ] && is_preempted; do
    retries=$((retries - 1))
    note "preempted, begins again; retries left after that: $retries"
    failed='' status=0
    for step in delete create install run; do take "$step"; done
  done
  finish
  exit "$status"
}

check_flags() {
  need name zone
  check_steps
  need_number retries
  retries=$((10#$retries))
  if has_step run || has_step collect; then check_workdir; fi
  if has_step collect; then need output; fi
  # Creating a slice anew needs the same flags as creating the first one.
  if has_step create || [ "$retries" -gt 0 ]; then check_slice; fi
  if has_step install || [ "$retries" -gt 0 ]; then find_code; fi
  need_command gcloud
}

check_steps() {
  local step chosen
  IFS=, read -r -a chosen <<<"$steps,"
  for step in "${chosen[@]}"; do
    case "$step" in
      create | install | run | collect | delete) ;;
      *) refuse "--steps=$steps: no step '$step' (there are $all_steps)" ;;
    esac
  done
}

has_step() {
  [[ ",$steps," == *",$1,"* ]]
}

check_workdir() {
  local places='gs://BUCKET/FOLDER or a folder of the workers'
  need workdir
  case "$workdir" in
    gs://?*) ;;
    gs:* | *://* | '~'*) refuse "--workdir=$workdir: expected $places" ;;
    *)
      # The folder is deleted with the slice: a new slice could not go on from it.
      [ "$retries" -eq 0 ] ||
        refuse "--retries=$retries: --workdir=$workdir is no gs://..."
      ;;
  esac
  workdir="${workdir%/}"
}

check_slice() {
  local given="--accelerator_type=$accelerator_type"
  need accelerator_type
  case "$accelerator_type" in
    tpu*)
      refuse "$given: not in the Cloud TPU API, see launch/cloud/gke_jobset.yaml"
      ;;
  esac
  runtime_version="${runtime_version:-$(usual_runtime)}"
  [ -n "$runtime_version" ] ||
    refuse "--runtime_version: a value is needed with $given"
}

# Google's table: https://cloud.google.com/tpu/docs/runtimes
usual_runtime() {
  case "$accelerator_type" in
    v[234]-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
  esac
}

# The workers take the code from a repository, not from here.
find_code() {
  local here
  here="$(dirname "$0")"
  if [ -z "$repository" ]; then
    repository="$(git -C "$here" remote get-url origin 2>/dev/null)" ||
      refuse '--repository: a value is needed, there is no git remote origin'
  fi
  if [ -z "$commit" ]; then
    commit="$(git -C "$here" rev-parse --verify HEAD 2>/dev/null)" ||
      refuse '--commit: a value is needed, this is no git checkout'
  fi
}

# Remembers the first step that fails; the steps after it are not taken.
take() {
  [ -z "$failed" ] || return 0
  "$1" || fail "$1" "$?"
}

fail() {
  note "$1 failed with status $2"
  failed="$1"
  # This script's status is the first failed step's, whatever fails after it.
  [ "$status" -ne 0 ] || status="$2"
}

# Collects and deletes after a failed run too: its answers count, and a slice costs.
finish() {
  local before="$failed"
  if has_step collect && [[ "$before" == '' || "$before" == run ]]; then
    collect || fail collect "$?"
  fi
  if [ "$before" = create ]; then
    # Somebody else may own a slice of this name; then create failed for that reason.
    note "nothing is deleted; if create left something: --steps=delete"
  elif has_step delete && [ -z "$keep" ]; then
    delete || fail delete "$?"
  fi
}

create() {
  execute gcloud compute tpus tpu-vm create "$name" "${where[@]}" \
    --accelerator-type="$accelerator_type" --version="$runtime_version" \
    ${spot:+--spot}
}

# The workers' python3 may be too old for the package (on Ubuntu 22.04 it is 3.10)
# or lack the venv package: then uv installs a Python of its own.
install() {
  local IFS=';'
  local serves='import ensurepip, sys; sys.exit(sys.version_info < (3, 11))'
  local lines=(
    'set -eu'
    " test -d swift_jax || git clone --quiet $(quoted "$repository") swift_jax"
    ' cd swift_jax'
    ' git fetch --quiet --tags origin'
    " git checkout --quiet $(quoted "$commit")"
    " test -d .venv || if python3 -c $(quoted "$serves")"
    ' then python3 -m venv .venv'
    ' else python3 -m pip install --quiet --user uv'
    ' python3 -m uv venv --quiet --seed --python=3.11 .venv'
    ' fi'
    ' . .venv/bin/activate'
    " $(install_command)"
  )
  on_workers "${lines[*]}"
}

run() {
  local enter='cd swift_jax && . .venv/bin/activate'
  on_workers "$enter && $(evaluate_command "$workdir")"
}

# Without keep-alive messages ssh would wait for a preempted worker for ever.
on_workers() {
  execute gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all \
    --ssh-flag='-o ServerAliveInterval=30' --command="$1"
}

is_preempted() {
  local state
  state="$(gcloud compute tpus tpu-vm describe "$name" "${where[@]}" \
    --format='value(state)')" || return
  [[ "$state" == PREEMPTED || "$state" == TERMINATED ]]
}

collect() {
  execute mkdir -p "$output" || return
  case "$workdir" in
    gs://*) collect_from_bucket ;;
    *) collect_from_workers ;;
  esac
}

# Two calls: a pattern that matches nothing would end one call for both.
collect_from_bucket() {
  local result=0
  execute gcloud storage cp "$workdir/answers*.jsonl" "$output/" || result=$?
  execute gcloud storage cp "$workdir/run.json" "$output/" || result=$?
  return "$result"
}

# Each process writes on its own worker, into a file with its number. scp copies
# from one worker only, and all workers but one may have nothing to copy.
collect_from_workers() {
  local folder="$workdir" hosts worker result=1
  local count=(gcloud compute tpus tpu-vm describe "$name" "${where[@]}"
    --format='value(networkEndpoints.len())')
  case "$folder" in
    /*) ;;
    *) folder="swift_jax/$folder" ;;
  esac
  if [ -n "$dry_run" ]; then
    execute "${count[@]}"
    hosts=1
  else
    hosts="$("${count[@]}")" || return
  fi
  for ((worker = 0; worker < ${hosts:-0}; worker++)); do
    if copy_from "$worker" "$folder/answers*.jsonl"; then result=0; fi
  done
  if [ -n "$dry_run" ]; then
    echo '# and the same from every further worker'
  fi
  for ((worker = 0; worker < ${hosts:-0}; worker++)); do
    if copy_from "$worker" "$folder/run.json"; then return "$result"; fi
  done
  return 1
}

copy_from() {
  execute gcloud compute tpus tpu-vm scp "$name:$2" "$output/" \
    "${where[@]}" --worker="$1"
}

delete() {
  execute gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet
}

main "$@"
