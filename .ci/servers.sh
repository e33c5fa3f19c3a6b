#!/bin/sh
# Brings the DynamoDB servers that the contract suite of the table runs against into .servers/:
# dynalite (npm, needs Node) and AWS's own DynamoDB Local (Maven, needs a JDK). Idempotent; does nothing twice.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
from="$root/.ci/servers"
to="$root/.servers"
mkdir -p "$to"

done_with() { # name, the files that decide: true when .servers/<name> was made from exactly these
    mark=$(cat "$2" "$3" "$0" | cksum)
    [ -f "$to/$1/.made-from" ] && [ "$(cat "$to/$1/.made-from")" = "$mark" ]
}

if ! command -v npm >/dev/null; then
    echo "servers: no npm, so no dynalite (install Node.js 20 or newer)" >&2
    missing=1
elif ! done_with dynalite "$from/package.json" "$from/dynalite.js"; then
    rm -rf "$to/dynalite" && mkdir -p "$to/dynalite"
    cp "$from/package.json" "$from/dynalite.js" "$to/dynalite/"
    npm install --prefix "$to/dynalite" --no-audit --no-fund --no-package-lock --ignore-scripts --silent
    echo "$mark" >"$to/dynalite/.made-from"
fi

if ! command -v mvn >/dev/null || ! command -v javac >/dev/null; then
    echo "servers: no Maven or no JDK, so no DynamoDB Local (install maven and a JDK 17 or newer)" >&2
    missing=1
elif ! done_with dynamodb-local "$from/pom.xml" "$from/Loopback.java"; then
    rm -rf "$to/dynamodb-local" && mkdir -p "$to/dynamodb-local/lib"
    cp "$from/pom.xml" "$to/dynamodb-local/"
    (cd "$to/dynamodb-local" && mvn --quiet --batch-mode dependency:copy-dependencies -DoutputDirectory=lib)
    javac -cp "$to/dynamodb-local/lib/*" -d "$to/dynamodb-local" "$from/Loopback.java"
    echo "$mark" >"$to/dynamodb-local/.made-from"
fi

exit "${missing:-0}"
