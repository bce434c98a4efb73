#!/bin/sh
# Installs Debian's Chromium for the tests of the page; does nothing, quietly, where it is there already.
set -eu

command -v chromium >/dev/null && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "chromium is missing; install it (on Debian: apt-get install chromium), then try again" >&2
    exit 1
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null
