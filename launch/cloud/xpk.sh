#!/usr/bin/env bash
# Runs launch/evaluate.py on TPU slices of a GKE cluster through xpk, which
# builds the image from a commit of this checkout and submits it as a JobSet.
#   launch/cloud/xpk.sh --cluster=NAME --workload=NAME --tpu_type=v5litepod-16 \
#     --workdir=gs://BUCKET/FOLDER [FLAG ...] -- ARGUMENT ...
# The ARGUMENTs are those of launch/evaluate.py. The other flags:
#   --zone=ZONE, --project=ID     default: gcloud's own
#   --commit=COMMIT               default: HEAD; changes not committed stay here
#   --num_slices=N                default: 1
#   --base_docker_image=IMAGE     default: python:3.11-slim
#   --max_restarts=N              restarts of a preempted slice; default: 10
#   --dry_run                     print the commands, run none
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=launch/cloud/common.sh
. launch/cloud/common.sh

flags='cluster workload tpu_type workdir zone project commit num_slices'
flags="$flags base_docker_image max_restarts"
cluster='' workload='' tpu_type='' workdir='' zone='' project='' commit=HEAD
num_slices=1 base_docker_image=python:3.11-slim max_restarts=10
dry_run=''

main() {
  take_flags "$flags" dry_run "$@"
  check_flags
  export_commit
  submit
}

check_flags() {
  need cluster workload tpu_type workdir commit base_docker_image
  need_number num_slices
  need_number max_restarts
  # Files that pods write elsewhere are gone with the pods.
  [[ "$workdir" == gs://?* ]] ||
    refuse "--workdir=$workdir: expected gs://BUCKET/FOLDER"
  need_command xpk
}

# Exports the commit into a folder without .venv and the like: xpk puts the whole
# folder into the image.
export_commit() {
  execute rm -rf build/xpk
  execute mkdir -p build/xpk
  execute git archive --output=build/xpk.tar "$commit"
  execute tar -xf build/xpk.tar -C build/xpk
}

submit() {
  execute xpk workload create --cluster="$cluster" --workload="$workload" \
    --tpu-type="$tpu_type" --num-slices="$num_slices" \
    --base-docker-image="$base_docker_image" --script-dir=build/xpk \
    --max-restarts="$max_restarts" ${zone:+"--zone=$zone"} \
    ${project:+"--project=$project"} \
    --command="$(install_command) && $(evaluate_command "${workdir%/}")"
}

main "$@"
