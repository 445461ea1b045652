# shellcheck shell=bash
# tpu_vm.sh and xpk.sh source this file. It reads flags, refuses bad input, and runs
# commands or prints them. A script that sources it sets dry_run and a variable for
# each of its flags.

# refuse MESSAGE: one line on standard error, status 2.
refuse() {
  note "$1"
  exit 2
}

# note MESSAGE: one line on standard error.
note() {
  echo "${0##*/}: $1" >&2
}

# take_flags 'FLAG ...' 'SWITCH ...' "$@": --FLAG=VALUE or --FLAG VALUE sets the
# variable FLAG, --SWITCH sets SWITCH to 1. Arguments after -- go to passed_on.
take_flags() {
  local flags=" $1 " switches=" $2 " flag
  shift 2
  passed_on=()
  while [ $# -gt 0 ]; do
    case "$1" in
      --)
        shift
        passed_on=("$@")
        return
        ;;
      --*) flag="${1%%=*}" flag="${flag#--}" ;;
      *) refuse "unexpected argument '$1'" ;;
    esac
    if [[ ! "$flag" =~ ^[a-z_]+$ ]]; then
      refuse "$1: no such flag"
    elif [[ "$switches" == *" $flag "* ]]; then
      [[ "$1" != *=* ]] || refuse "$1: takes no value"
      printf -v "$flag" 1
    elif [[ "$flags" != *" $flag "* ]]; then
      refuse "$1: no such flag"
    elif [[ "$1" == *=* ]]; then
      printf -v "$flag" %s "${1#*=}"
    else
      [ $# -gt 1 ] || refuse "$1: a value is missing"
      shift
      printf -v "$flag" %s "$1"
    fi
    shift
  done
}

# need FLAG ...: refuses a flag without a value.
need() {
  local flag
  for flag in "$@"; do
    [ -n "${!flag}" ] || refuse "--$flag: a value is needed"
  done
}

# need_number FLAG: refuses a value that is not one to nine digits. A shell can
# calculate with so many.
need_number() {
  [[ "${!1}" =~ ^[0-9]{1,9}$ ]] ||
    refuse "--$1=${!1}: expected a whole number >= 0"
}

# need_command NAME: refuses a command that is not installed, except in a dry run.
need_command() {
  [ -n "$dry_run" ] || command -v "$1" >/dev/null ||
    refuse "$1: command not found (--dry_run shows what it would be asked)"
}

# execute COMMAND ...: runs the command; in a dry run prints it as a shell reads it.
execute() {
  if [ -n "$dry_run" ]; then
    quoted "$@"
  else
    "$@"
  fi
}

# quoted WORD ...: a line that a shell splits into these words.
quoted() {
  local word line='' quote="'" escaped="'\\''"
  for word in "$@"; do
    case "$word" in
      '' | *[!A-Za-z0-9_@%+=:,./-]*) word="'${word//$quote/$escaped}'" ;;
    esac
    line="$line${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# install_command: the command by which every host installs the package and its
# dependencies, in the versions that were tested.
install_command() {
  quoted python -m pip install --quiet --constraint constraints.txt \
    --editable '.[tpu,eval,gcs]'
}

# evaluate_command WORKDIR: the command that every host runs, with the arguments
# after --. If a flag is given twice, the last one counts.
evaluate_command() {
  quoted python launch/evaluate.py \
    ${passed_on[@]+"${passed_on[@]}"} --workdir="$1"
}
