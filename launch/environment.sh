# shellcheck shell=bash
# Sourced by the other scripts here: makes the clone's virtual environment and keeps it up to date.

# The versions of Python that this project runs on, as in pyproject.toml, from the oldest on.
supported_pythons=(3.11 3.12 3.13)

# Prints the version of the Python $1 if this project runs on it; else fails.
supported_version() {
    local version
    version=$("$1" -c 'import ensurepip, sys, venv; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) &&
        [[ " ${supported_pythons[*]} " == *" $version "* ]] &&
        echo "$version"
}

# Prints the first Python on PATH that this project runs on.
find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11; do
        if supported_version "$candidate" >/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "None of Python ${supported_pythons[*]} with the venv module was found on PATH: please" \
        "install one." >&2
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
    # Where its making was interrupted, there is a Python without pip.
    if [ ! -x "$environment/bin/pip" ]; then
        python=$(find_python)
        "$python" -m venv "$environment" --clear
    fi
    echo "Installing into $environment; the first time this takes some minutes." >&2
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
        --editable ".${extras:+[$extras]}" >&2
    cp pyproject.toml "$stamp"
}
