# Shared by sample_app/run and tests/run: a virtual environment in .venv, and Debian packages where they are missing.

# need_packages WHAT PACKAGE...: install what is missing, as root or with sudo; else say what to do.
need_packages() {
    local what=$1 missing=() sudo=() package output
    shift
    command -v dpkg-query >/dev/null || return 0
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    if [ "$(id -u)" -ne 0 ]; then
        if sudo -n true 2>/dev/null; then sudo=(sudo -n); else
            echo "$what: Debian packages are missing. As root: apt-get install ${missing[*]}" >&2
            exit 1
        fi
    fi
    echo "Installing for $what: ${missing[*]}" >&2
    output=$("${sudo[@]}" apt-get update -qq 2>&1 && "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" 2>&1) || {
        echo "$output" | tail -n 5 >&2
        echo "$what: apt-get could not install ${missing[*]}" >&2
        exit 1
    }
}

# find_python: sets `python` to one that is new enough, `debian` to what Debian calls its packages.
find_python() {
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        debian=$("$python" -c 'import sys; v = sys.version_info; print(f"python3.{v.minor}"); sys.exit(v < (3, 11))' \
            2>/dev/null) && return 0
    done
    echo "Python 3.11 or newer is needed and was not found: apt-get install python3 python3-venv" >&2
    exit 1
}

# need_mysqlclient: what it takes to build it, unless it is there.
need_mysqlclient() {
    .venv/bin/python -c 'import MySQLdb' 2>/dev/null && return 0
    find_python
    local headers=()
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || headers=("$debian-dev")
    need_packages "mysqlclient" pkg-config libmariadb-dev gcc libc6-dev "${headers[@]}"
}

# make_venv EXTRAS: .venv with this project and its extras; at once if it is there already.
make_venv() {
    local stamp
    stamp=$(cat setup.cfg pyproject.toml | cksum | tr -d ' ')
    .venv/bin/python -c '' 2>/dev/null && [ -e ".venv/.$stamp-$1" ] && return 0
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        find_python
        rm -rf .venv
        if ! "$python" -m venv .venv >/dev/null 2>&1; then
            rm -rf .venv
            need_packages "a virtual environment" "$debian-venv"
            "$python" -m venv .venv
        fi
    fi
    echo "Installing the project into .venv (once)" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$1]" || {
        echo "pip could not install the project: see above; then run this again" >&2
        exit 1
    }
    : > ".venv/.$stamp-$1"
}
