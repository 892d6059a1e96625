#!/usr/bin/env bash
# Makes the Python reference environment (PyTorch, Transformers, PEFT) in .venv-interop, once.
# It is used by `make interop` and `make golden` only: FedPipe itself needs no Python.
#
#   scripts/python_env.sh [FOLDER]      PYTHON=python3.12 chooses the interpreter (3.11 or newer)
#
# A stamp with the hash of the requirements marks a finished environment; a broken or outdated one is made anew.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:-.venv-interop}
python=${PYTHON:-python3}
requirements=scripts/requirements-interop.txt

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $("$python" --version) is too old for the reference environment; set PYTHON to 3.11 or newer" >&2
    exit 1
}
stamp="$("$python" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$requirements")"
if [ -f "$venv/stamp" ] && [ "$(cat "$venv/stamp")" = "$stamp" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    exit 0
fi

echo "Making $venv from $requirements (2.4 GB to download and 4.1 GB on disk on Linux)"
rm -rf "$venv"
"$python" -m venv "$venv"
# No byte code up front: most of these modules are never imported.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-compile --no-deps \
    --only-binary=:all: -r "$requirements"
"$venv/bin/python" -c 'import torch, transformers, peft; print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)'
echo "$stamp" > "$venv/stamp"
