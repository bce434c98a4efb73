#!/bin/sh
# Installs zsh and fish for the tests of shell completion; does nothing, quietly, where they are there already.
set -eu

command -v zsh >/dev/null && command -v fish >/dev/null && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "zsh or fish is missing; install both (on Debian: apt-get install zsh fish), then try again" >&2
    exit 1
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends zsh fish >/dev/null
