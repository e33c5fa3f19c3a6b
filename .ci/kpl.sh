#!/bin/sh
# Brings the real Kinesis Producer Library and Kinesis Client Library (Maven), and two small programs that put lines
# with the one and read them with the other, into .servers/kpl.
# Idempotent; does nothing twice.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
from="$root/.ci/kpl"
to="$root/.servers/kpl"
mark=$(cat "$from/pom.xml" "$from/Put.java" "$from/Read.java" "$0" | cksum)
[ -f "$to/.made-from" ] && [ "$(cat "$to/.made-from")" = "$mark" ] && exit 0
if ! command -v mvn >/dev/null || ! command -v javac >/dev/null; then
    echo "kpl: no Maven or no JDK (install maven and a JDK 17 or newer)" >&2
    exit 1
fi
rm -rf "$to" && mkdir -p "$to/lib"
cp "$from/pom.xml" "$to/"
(cd "$to" && mvn --quiet --batch-mode dependency:copy-dependencies -DoutputDirectory=lib)
javac -cp "$to/lib/*" -d "$to" "$from/Put.java" "$from/Read.java"
echo "$mark" >"$to/.made-from"
