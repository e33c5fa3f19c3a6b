#!/bin/sh
# Brings the tools that look at generated templates into .servers/: AWS SAM's CLI and checkov (Python packages whose
# requirements would quarrel with ours, so each has a venv of its own). Idempotent; does nothing twice.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
to="$root/.servers"
python=${PYTHON:-python3}
mkdir -p "$to"

bring() { # name, package, command
    mark="$2 $(cksum <"$0")"
    [ -f "$to/$1/.made-from" ] && [ "$(cat "$to/$1/.made-from")" = "$mark" ] && return
    rm -rf "${to:?}/$1"
    if "$python" -m venv "$to/$1" && "$to/$1/bin/pip" install --quiet --disable-pip-version-check "$2"; then
        echo "$mark" >"$to/$1/.made-from"
    else
        echo "templates: $3 could not be installed, its tests will be skipped" >&2
        missing=1
    fi
}

bring sam "aws-sam-cli>=1.130" sam
bring checkov "checkov>=3.2" checkov
exit "${missing:-0}"
