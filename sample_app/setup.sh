# Shared by sample_app/run and tests/run: a virtual environment in .venv, and Debian packages where they are missing.

# need_packages WHAT PACKAGE...: install what is missing, as root or with sudo; else say what to do.
need_packages() {
    local what=$1 missing=() package
    shift
    command -v dpkg-query >/dev/null || return 0
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        if sudo -n true 2>/dev/null; then sudo=(sudo -n); else
            echo "$what needs Debian packages that are missing. As root: apt-get install ${missing[*]}" >&2
            exit 1
        fi
    fi
    echo "Installing for $what: ${missing[*]}" >&2
    "${sudo[@]}" apt-get update -qq >/dev/null
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" \
        >/dev/null || { echo "apt-get could not install: ${missing[*]}" >&2; exit 1; }
}

# make_venv EXTRAS: .venv with this project and its extras; at once if it is there already.
make_venv() {
    local python stamp
    for python in python3.13 python3.12 python3.11 python3; do
        command -v "$python" >/dev/null && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
        python=
    done
    if [ -z "$python" ]; then
        echo "Python 3.11 or newer is needed and was not found: apt-get install python3 python3-venv" >&2
        exit 1
    fi
    stamp=$(cat setup.cfg pyproject.toml | cksum | tr -d ' ')
    [ -x .venv/bin/python ] && .venv/bin/python -c '' 2>/dev/null && [ -e ".venv/.$stamp-$1" ] && return 0
    if ! [ -x .venv/bin/python ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        rm -rf .venv
        if ! "$python" -m venv .venv >/dev/null 2>&1; then
            rm -rf .venv
            need_packages "a virtual environment" python3-venv
            "$python" -m venv .venv
        fi
    fi
    echo "Installing the project into .venv (once)" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$1]"
    : > ".venv/.$stamp-$1"
}
