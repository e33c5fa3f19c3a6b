#!/bin/sh
# Brings the AWS CLI (PyPI, in an environment of its own) into .servers/awscli, for the test that runs docs/lab.md.
# Idempotent.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
to="$root/.servers/awscli"
if [ ! -x "$to/bin/aws" ]; then
    "${PYTHON:-python3}" -m venv "$to"
    "$to/bin/pip" install --quiet --disable-pip-version-check awscli
fi
"$to/bin/aws" --version
