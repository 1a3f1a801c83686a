#!/usr/bin/env bash
# Trains on a Google Cloud TPU slice of any number of hosts, through pre-emptions, to the end:
#
#   bash launch/tpu_pod.sh --name=NAME --zone=ZONE --type=v5litepod-16 --bucket=BUCKET \
#       [--version=RUNTIME] [--spot] [--keep] [--dry-run] -- --config=configs/NAME.py [...]
#
# Creates the slice or takes the one that is there, installs this clone, starts main with the
# arguments after -- on all hosts and shows their output. After a pre-emption it does so again, and
# the run goes on from its last checkpoint. At the end it copies the bucket to runs/ and deletes the
# slice, unless --keep is given. Run folders, and nothing else, lie in the bucket, which every host
# mounts as runs/ (with gcsfuse; choose a bucket with hierarchical namespace, in which a rename is atomic).
# --dry-run prints the commands instead. Needs gcloud, logged in, with a project set.
set -euo pipefail
cd "$(dirname "$0")/.."

name='' zone='' type='' bucket='' version=v2-alpha-tpuv5-lite
spot=() keep=false dry_run=false existed=false

fail() {
    echo "$1" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
        --name=*) name=${1#*=} ;;
        --zone=*) zone=${1#*=} ;;
        --type=*) type=${1#*=} ;;
        --bucket=*)
            bucket=${1#*=}
            bucket=${bucket#gs://}
            bucket=${bucket%/}
            ;;
        --version=*) version=${1#*=} ;;
        --spot) spot=(--spot) ;;
        --keep) keep=true ;;
        --help | -h)
            sed -n '/^set /q; s/^# \{0,1\}//; 2,$p' launch/tpu_pod.sh
            exit 0
            ;;
        --dry-run) dry_run=true ;;
        --)
            shift
            break
            ;;
        *) fail "$1: not understood; main's arguments follow --" ;;
    esac
    shift
done
for required in name zone type bucket; do
    [ -n "${!required}" ] || fail "--$required=... is required"
done
[[ $bucket =~ ^[a-z0-9._-]+$ ]] ||
    fail "--bucket=$bucket: must be a whole bucket's name, of small letters, digits, '-', '_' and '.'"
[ $# -gt 0 ] || fail "-- --config=configs/NAME.py is required"
$dry_run || command -v gcloud >/dev/null || fail "gcloud is not on PATH: install the Google Cloud CLI"

run() {
    if $dry_run; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

tpu() {
    local verb=$1
    shift
    run gcloud compute tpus tpu-vm "$verb" "$name" --zone="$zone" "$@"
}

on_all_hosts() {
    tpu ssh --worker=all --command="$1"
}

# READY, PREEMPTED, ...; nothing where there is no such slice.
state() {
    if ! $dry_run; then
        gcloud compute tpus tpu-vm describe "$name" --zone="$zone" --format='value(state)' \
            2>/dev/null || true
    fi
}

ensure_slice() {
    local current
    current=$(state)
    if [ "$current" = READY ]; then
        existed=true
        return
    fi
    if [ -n "$current" ]; then
        echo "The slice $name is $current: it is made anew."
        tpu delete --quiet
    fi
    # After a pre-emption a zone often has no room for a while.
    # A Mac's bash takes an empty array for one that is not set.
    until tpu create --accelerator-type="$type" --version="$version" ${spot[@]+"${spot[@]}"}; do
        $existed || exit 1
        echo "The slice $name could not be made; it is tried again."
        sleep "${SECONDS_TO_SETTLE:-60}"
    done
    existed=true
}

install_on_hosts() {
    archive=$(mktemp)
    # Where the slice is lost meanwhile, too; of each new slice another would be left.
    trap 'rm -f "$archive"' EXIT
    run tar --create --gzip --file="$archive" --exclude-vcs --exclude=./.venv --exclude=./runs .
    run gcloud compute tpus tpu-vm scp "$archive" "$name:l2w_jax.tar.gz" \
        --zone="$zone" --worker=all
    rm -f "$archive"
    on_all_hosts "set -e; mkdir -p l2w_jax/runs; tar -xzf l2w_jax.tar.gz -C l2w_jax
command -v gcsfuse >/dev/null || { sudo apt-get update -qq; sudo apt-get install -qq gcsfuse; }
( . l2w_jax/launch/environment.sh; find_python >/dev/null 2>&1 ) || {
    sudo add-apt-repository -y ppa:deadsnakes/ppa >/dev/null; sudo apt-get install -qq python3.12-venv; }
mountpoint -q l2w_jax/runs || gcsfuse --implicit-dirs $bucket l2w_jax/runs
EXTRAS=tpu bash l2w_jax/launch/local.sh --help >/dev/null"
}

# On every host at once; JAX finds the others through the slice's own metadata.
arguments=$(printf '%q ' "$@")
train="cd l2w_jax && EXTRAS=tpu L2W_DISTRIBUTED=auto bash launch/local.sh $arguments"

while true; do
    ensure_slice
    # In a subshell, which the first command that fails ends, also where the slice is lost meanwhile.
    set +e
    (
        set -e
        install_on_hosts
        on_all_hosts "$train"
    )
    status=$?
    set -e
    if [ "$status" -eq 0 ]; then
        break
    fi
    # A slice that is being pre-empted counts as ready for a little longer.
    sleep "${SECONDS_TO_SETTLE:-60}"
    if [ "$(state)" = READY ]; then
        echo "The run ended with status $status, and the slice is still there; see above." >&2
        exit "$status"
    fi
    echo "The slice was lost; the run goes on from its last checkpoint on a new one."
done

run mkdir -p runs
run gcloud storage rsync --recursive "gs://$bucket" runs
if ! $keep; then
    tpu delete --quiet
fi
