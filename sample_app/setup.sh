# Shared by sample_app/run and tests/run: a virtual environment, and Debian packages where they are missing.

wanted=()  # Debian packages that were asked for

# want PACKAGE...: ask for packages; install_wanted installs all of them at once.
want() { wanted+=("$@"); }

# install_wanted WHAT: install what is missing, as root or with sudo; else name all of it in one line.
install_wanted() {
    local what=$1 missing=() sudo=() package output
    command -v dpkg-query >/dev/null || return 0
    for package in "${wanted[@]}"; do
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
    python=python3 debian=python3
    return 1
}

# want_venv: what it takes to make .venv.
want_venv() {
    .venv/bin/python -m pip --version >/dev/null 2>&1 && return 0
    find_python || want python3
    "$python" -c 'import ensurepip, venv' 2>/dev/null || want "$debian-venv"
}

# want_mysqlclient: what it takes to build it, unless each of these environments has it.
want_mysqlclient() {
    local venv there=yes
    for venv; do
        "$venv/bin/python" -c 'import MySQLdb' 2>/dev/null || there=
    done
    [ -z "$there" ] || return 0
    want pkg-config libmariadb-dev gcc libc6-dev
    find_python || true
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' 2>/dev/null || want "$debian-dev"
}

# make_venv EXTRAS [VENV [PIP'S OPTIONS]]: an environment (.venv) with this project and its extras; at once if it is
# there already.
make_venv() {
    local extras=$1 venv=${2:-.venv} stamp
    shift; [ $# -eq 0 ] || shift
    stamp=$(cat setup.cfg pyproject.toml | cksum | tr -d ' ')
    "$venv/bin/python" -c '' 2>/dev/null && [ -e "$venv/.$stamp-$extras" ] && return 0
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        find_python || {
            echo "Python 3.11 or newer is needed and was not found: apt-get install python3 python3-venv" >&2
            exit 1
        }
        rm -rf "$venv"
        "$python" -m venv "$venv" || exit 1
    fi
    echo "Installing the project into $venv (once)" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" -e ".[$extras]" || {
        echo "pip could not install the project: see above; then run this again" >&2
        exit 1
    }
    : > "$venv/.$stamp-$extras"
}
