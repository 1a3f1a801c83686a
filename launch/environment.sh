# shellcheck shell=bash
# Sourced by the other scripts here: makes the clone's virtual environment and keeps it up to date.

# Prints the first Python on PATH that this project runs on.
find_python() {
    local candidate
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "No Python 3.11 or newer with the venv module was found on PATH: please install one." >&2
    return 2
}

# Installs the project of this clone, with the extras named in $1 ("" for none), into the virtual
# environment in folder $2, where that was not done since pyproject.toml last changed.
install_project() {
    local extras=$1 environment=$2 python stamp
    stamp="$environment/installed_for_${extras:-running}"
    if cmp --silent pyproject.toml "$stamp"; then
        return
    fi
    if [ ! -x "$environment/bin/python" ]; then
        python=$(find_python)
        "$python" -m venv "$environment"
    fi
    echo "Installing into $environment; the first time this takes some minutes." >&2
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
        --editable ".${extras:+[$extras]}" >&2
    cp pyproject.toml "$stamp"
}
