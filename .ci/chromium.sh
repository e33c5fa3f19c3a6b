#!/bin/sh
# The browser that the console's page is tested in: Debian's Chromium. Idempotent; needs root where it is not there.
set -eu
if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "chromium: not a Debian machine; install Chromium, or the console's page goes untested" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core
