#!/bin/sh
# Brings the servers that the contract suites run against into .servers/: for DynamoDB dynalite (npm) and AWS's own
# DynamoDB Local (Maven, needs a JDK); for Kinesis kinesalite and kinesis-mock (npm). npm needs Node.
# Idempotent; does nothing twice.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
from="$root/.ci/servers"
to="$root/.servers"
mkdir -p "$to"

done_with() { # name, the files that decide: true when .servers/<name> was made from exactly these
    mark=$(cat "$2" "$3" | cksum)
    [ -f "$to/$1/.made-from" ] && [ "$(cat "$to/$1/.made-from")" = "$mark" ]
}

npm_server() { # name: .ci/servers/<name>.json says what it needs, <name>.js starts it
    done_with "$1" "$from/$1.json" "$from/$1.js" && return
    rm -rf "$to/$1" && mkdir -p "$to/$1"
    cp "$from/$1.js" "$to/$1/"
    cp "$from/$1.json" "$to/$1/package.json"
    npm install --prefix "$to/$1" --no-audit --no-fund --no-package-lock --ignore-scripts --silent
    echo "$mark" >"$to/$1/.made-from"
}

if command -v npm >/dev/null; then
    npm_server dynalite
    npm_server kinesalite
    npm_server kinesis-mock
else
    echo "servers: no npm, so no dynalite, kinesalite and kinesis-mock (install Node.js 20 or newer)" >&2
    missing=1
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
