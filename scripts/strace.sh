#!/bin/sh
# Installs strace for the test that watches the network; does nothing, quietly, where it is there already.
set -eu

command -v strace >/dev/null && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "strace is missing; install it (on Debian: apt-get install strace), then try again" >&2
    exit 1
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends strace >/dev/null
