#!/usr/bin/env bash
# Verifies the container image where there is no Docker: builds the program as the Dockerfile does, puts it into a
# directory with what the Dockerfile copies and nothing else, and runs it there as Docker would: read-only, as process 1,
# as user 65532. Needs root, for chroot and mount; Linux; Rust; Node.js and Python 3 for the emulators; openssl.
#
#     sudo --preserve-env=PATH,HOME,CARGO_TARGET_DIR infra/image/verify.sh
#
# IMAGE_PROFILE=dev: a debug build, sooner. What root builds is root's: a CARGO_TARGET_DIR of its own keeps it apart.
#
# Verified: the program is static; --help, --version and refused settings; names from /etc/hosts and from a name server;
# TLS with both clients (Amberflo's and AWS's) to the names that they use by themselves, trusting the one file of CAs and
# nothing without it; events from an emulated stream billed by the stand-in for Amberflo; `health`; SIGTERM to process 1
# drains; nothing was written.
#
# NOT verified, for want of Docker: that the Dockerfile parses and its base image exists; that its compiler, on another
# Debian, makes a program that behaves the same; .dockerignore; arm64; credentials from Fargate's endpoint; the real AWS
# and Amberflo, and their certificates.
set -euo pipefail
cd "$(dirname "$0")/../.."

[ "$(id -u)" = 0 ] || { echo 'verify.sh: needs root, for chroot and mount' >&2; exit 1; }
profile=${IMAGE_PROFILE:-release}
target=${CARGO_TARGET_DIR:-target}
scratch=$(mktemp -d)
image=$scratch/image
# Loopback addresses that nothing else on a machine uses.
name_server=127.11.53.53
started=()
# What a process came down to, through the programs that started each other.
leaf() {
    local process=$1 child
    while child=$(pgrep --parent "$process"); do process=$child; done
    echo "$process"
}
finish() {
    [ -z "${outer:-}" ] || kill -9 "$(leaf "$outer")" 2>/dev/null || true
    for process in "${started[@]}"; do kill "$process" 2>/dev/null || true; done
    wait
    rm -rf "$scratch"
}
trap finish EXIT
ok() { echo "ok      $*"; }
fail() {
    echo "FAILED  $*" >&2
    tail -n 5 "$scratch"/*.log >&2
    exit 1
}
# until SECONDS COMMAND...: waits for it to succeed.
until_ok() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || fail "waited in vain for: $*"
        sleep 0.1
    done
}

# --- the image
mkdir -p "$image"/etc/ssl/certs "$image"/proc "$image"/dev
touch "$image"/dev/{null,zero,random,urandom}
infra/image/build.sh "$profile" "$image/ingest-worker"
cp LICENSE "$image/"
! readelf --program-headers --dynamic "$image/ingest-worker" | grep -E 'INTERP|NEEDED' || fail 'it is not static'
ok "a static program of $(du -h "$image/ingest-worker" | cut -f1), $profile"

# A CA of our own in place of the public ones.
subject() { printf '/CN=%s' "$1"; }
openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj "$(subject 'CA of verify.sh')" \
    -keyout "$scratch/ca.key" -out "$scratch/ca.pem" 2>/dev/null
cp "$scratch/ca.pem" "$image/etc/ssl/certs/ca-certificates.crt"
# What Docker puts there.
echo "nameserver $name_server" >"$image/etc/resolv.conf"
echo '127.0.0.1 localhost from-the-hosts-file' >"$image/etc/hosts"

# in_image SECONDS VARIABLE=VALUE... -- ARGUMENTS...: runs the program in the image, with these variables alone, for at
# most so long.
in_image() {
    local limit=$1 variables=()
    shift
    while [ "$1" != -- ]; do variables+=("$1") && shift; done
    shift
    # shellcheck disable=SC2016 # the inner shell expands it
    timeout "$limit" unshare --mount --pid --fork --kill-child sh -euc '
        image=$1 && shift
        mount --bind "$image" "$image"
        mount -t proc proc "$image/proc"
        # Of the devices that containers have; a static program reads its random numbers from the last one.
        for device in null zero random urandom; do mount --bind /dev/$device "$image/dev/$device"; done
        mount -o remount,bind,ro "$image"
        cd "$image"
        exec env -i "$@"' sh "$image" \
        "${variables[@]}" "$(command -v chroot)" --userspec=65532:65532 "$image" /ingest-worker "$@"
}
# refused CODE PATTERN VARIABLE=VALUE... -- ARGUMENTS...: it must end so, with one line about it.
refused() {
    local code=$1 pattern=$2 found=0
    shift 2
    in_image 60 "$@" >"$scratch/out" 2>"$scratch/err" || found=$?
    [ $found = "$code" ] || fail "exit code $found instead of $code: $* $(cat "$scratch/err")"
    [ "$(grep -vc -e '^$' -e --help "$scratch/err")" = 1 ] && grep -q "$pattern" "$scratch/err" ||
        fail "not one line about $pattern: $(cat "$scratch/err")"
}

in_image 60 -- --version | grep -q '^ingest-worker [0-9]' || fail --version
in_image 60 -- --help | grep -q ADMIN_LISTEN || fail --help
ok '--version and --help'
refused 2 'no API key' --
refused 2 'BATCH_LINGER' BATCH_LINGER=soon --
refused 2 'STREAM: local:./metering-data' AMBERFLO_API_KEY=k --
refused 1 '/health: ' -- health
ok 'settings that cannot work, the local store on a read-only file system, and health without a worker: one line each'

# --- around it: emulated AWS, the stand-in for Amberflo, a name server, TLS
loadtest/emulators/setup.sh
cargo build --locked --quiet --bin emulators --bin amberflo-sandbox --bin loadtest
"$target/debug/emulators" --shards 2 "$scratch/aws.env" >"$scratch/emulators.log" 2>&1 &
started+=($!)
"$target/debug/amberflo-sandbox" --listen 127.0.0.1:0 >"$scratch/sandbox.log" 2>&1 &
started+=($!)
until_ok 60 test -s "$scratch/aws.env"
until_ok 30 grep -q 'address=127' "$scratch/sandbox.log"
port() { grep -oE '127\.0\.0\.1:[0-9]+' | head -1 | cut -d: -f2; }
setting() { sed -n "s/^export $1='\(.*\)'$/\1/p" "$scratch/aws.env"; }
amberflo=$(port <"$scratch/sandbox.log")
kinesis=$(setting AWS_ENDPOINT_URL_KINESIS | port)
others=$(setting AWS_ENDPOINT_URL_DYNAMODB | port)

names=(ingest.amberflo.io {kinesis,dynamodb,secretsmanager}.us-east-1.amazonaws.com)
openssl req -newkey rsa:2048 -nodes -subj "$(subject stand-in)" \
    -keyout "$scratch/server.key" -out "$scratch/server.csr" 2>/dev/null
openssl x509 -req -in "$scratch/server.csr" -CA "$scratch/ca.pem" -CAkey "$scratch/ca.key" -CAcreateserial -days 1 \
    -extfile <(printf 'subjectAltName=%s' "$(printf ',DNS:%s' "${names[@]}" | cut -c2-)") \
    -out "$scratch/server.pem" 2>/dev/null
python3 infra/image/stand_in.py $name_server "$scratch/server.pem" "$scratch/server.key" "$scratch/stand-in" \
    "${names[0]}=127.11.53.1=$amberflo" "${names[1]}=127.11.53.2=$kinesis" "${names[2]}=127.11.53.3=$others" \
    "${names[3]}=127.11.53.4=$others" >"$scratch/names.log" &
started+=($!)
until_ok 30 test -e "$scratch/stand-in"

# --- the worker, with the addresses that it knows by itself
admin=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
aws=(AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=emulated AWS_SECRET_ACCESS_KEY=emulated AWS_EC2_METADATA_DISABLED=true)
worker=("${aws[@]}" STREAM=kinesis:usage API_KEY_SECRET_NAME=amberflo API_KEY_SECRET_ID=apiKey LOG_FORMAT=json
    CREATE_LEASE_TABLE=true DEAD_LETTER_QUEUE="$(setting DEAD_LETTER_QUEUE)"
    # The queue is named by its URL, as an emulator makes it; this name is in /etc/hosts only.
    AWS_ENDPOINT_URL_SQS="http://from-the-hosts-file:$others" ADMIN_LISTEN=0.0.0.0:"$admin")

mv "$image/etc/ssl/certs/ca-certificates.crt" "$scratch/"
code=0
in_image 60 "${worker[@]}" AWS_MAX_ATTEMPTS=1 -- 2>"$scratch/err" || code=$?
# A debug build of the AWS client ends in an assertion about it.
[ $code != 0 ] && grep -qiE 'certificate|UnknownIssuer' "$scratch/err" || fail "exit code $code: $(cat "$scratch/err")"
mv "$scratch/ca-certificates.crt" "$image/etc/ssl/certs/"
ok "without the file of CAs nobody is trusted: $(grep -iE 'certificate|UnknownIssuer' "$scratch/err" | tail -1 | cut -c1-300)"

touch "$scratch/before"
in_image 600 "${worker[@]}" -- >"$scratch/worker.log" 2>&1 &
outer=$!
until_ok 60 grep -q '"started"' "$scratch/worker.log"
until_ok 60 in_image 10 ADMIN_LISTEN=0.0.0.0:"$admin" -- health
ok 'started, and healthy by its own health command'
# shellcheck disable=SC1091
(. "$scratch/aws.env" && "$target/debug/loadtest" put --events 500 --rate 500) >/dev/null
billed() { python3 - "$amberflo" <<'END'
import json, sys, urllib.request
ledger = json.load(urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/sandbox/ledger", timeout=5))
sys.exit(ledger["events"] != 500)
END
}
until_ok 60 billed
ok '500 events of an emulated stream are billed, over TLS, by names'
for name in "${names[@]}"; do grep -qx "$name" "$scratch/names.log" || fail "$name was not asked for"; done
ok "asked the name server for $(sort -u "$scratch/names.log" | paste -sd' ')"

inner=$(leaf "$outer")
grep -qE '^Uid:\s+65532\s+65532' "/proc/$inner/status" || fail 'it runs as another user'
grep -qE '^CapEff:\s+0+$' "/proc/$inner/status" || fail 'it has capabilities'
grep -qE '^NSpid:\s.*\s1$' "/proc/$inner/status" || fail 'it is not process 1'
kill -TERM "$inner"
code=0
wait "$outer" || code=$?
[ $code = 0 ] && grep -q '"drained"' "$scratch/worker.log" || fail "exit code $code: $(tail -3 "$scratch/worker.log")"
ok 'as process 1 and user 65532 without capabilities, SIGTERM drained it'
[ -z "$(find "$image" -newer "$scratch/before")" ] || fail 'it wrote into the image'
ok 'nothing was written'
