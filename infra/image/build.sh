#!/bin/sh
# Builds the worker as one static program, for an image that holds nothing else: infra/image/build.sh PROFILE DESTINATION
# In the image's Dockerfile and in verify.sh, so that what was verified is what the image has.
set -eu
cd "$(dirname "$0")/../.."
profile=$1 destination=$2

# glibc 2.34 and later resolve names in a static program as in any other, without libraries of the system.
# With --target, programs that run during the build (build scripts, procedural macros) stay dynamic, as they must.
target=$(rustc -vV | sed -n 's/^host: //p')
case $target in
*-linux-gnu) ;;
*) echo "build.sh: Rust builds for $target here; allowed is Linux with glibc" >&2 && exit 1 ;;
esac
RUSTFLAGS='-C target-feature=+crt-static' cargo build --locked --profile "$profile" --target "$target" \
    --package ingest-worker --bin ingest-worker
directory=$profile
[ "$profile" != dev ] || directory=debug
strip --strip-all -o "$destination" "${CARGO_TARGET_DIR:-target}/$target/$directory/ingest-worker"
