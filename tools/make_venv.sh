#!/bin/sh
# Makes the virtual environment with crinoid (editable) and its development tools: make_venv.sh DIRECTORY
set -eu
venv=$1
python=${PYTHON:-python3}
install() {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}
if ! command -v "$python" >/dev/null 2>&1; then
    if [ "$python" != python3 ] || [ "$(id -u)" -ne 0 ]; then
        echo "$python is missing: install Python 3.11 or newer ('apt-get install python3 python3-venv' as root)" >&2
        exit 1
    fi
    install python3 python3-venv
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "crinoid needs Python 3.11 or newer; $python is $("$python" --version)" >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "$(id -u)" -ne 0 ]; then
        echo "$python has no venv module: run 'apt-get install python3-venv' as root" >&2
        exit 1
    fi
    install python3-venv
fi
echo "Installing crinoid and its development tools into $venv, and nothing else; a minute or more"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# pip before 25.1 knows no dependency groups.
"$venv/bin/pip" install --quiet --upgrade 'pip>=25.1'
"$venv/bin/pip" install --quiet --editable . --group dev
