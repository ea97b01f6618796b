# Sourced by the scripts that install pinned tools of the tests under target/tools. Quick where they are installed
# already: the copy of the list of versions is made last, and says that the installation is complete.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tools=$root/target/tools
mkdir -p "$tools"
missing=0

# need NAME HOW DIRECTORY ARGUMENT...: installs something in a directory, or says that it could not.
need() {
    local name=$1
    shift
    "$@" || { echo "setup: $name could not be installed in $2" >&2; missing=1; }
}

# installed: the end of a script. With CI=true it is an error where something could not be installed.
installed() {
    [ "${CI:-}" != true ] || exit $missing
}

# from_pypi DIRECTORY LIST: a virtual environment with the packages of a requirements.txt.
from_pypi() {
    cmp -s "$2" "$1/requirements.txt" && return
    rm -rf "$1" &&
        python3 -m venv "$1" &&
        "$1/bin/pip" install --quiet --disable-pip-version-check -r "$2" &&
        cp "$2" "$1/requirements.txt"
}

# from_npm DIRECTORY SOURCE: the packages of SOURCE/package-lock.json.
from_npm() {
    cmp -s "$2/package-lock.json" "$1/installed-lock.json" && return
    mkdir -p "$1" &&
        cp "$2/package.json" "$2/package-lock.json" "$1/" &&
        (cd "$1" && npm ci --silent --ignore-scripts --no-audit --no-fund) &&
        cp "$2/package-lock.json" "$1/installed-lock.json"
}

# from_debian DIRECTORY PACKAGE PROGRAM...: a Debian package's programs, or links to them where they are on the PATH.
# Nothing outside the directory is touched, so that no root is needed. A program appears whole or not at all.
from_debian() {
    local directory=$1 package=$2 unpacked program source
    shift 2
    are_in() { for program in "${@:2}"; do [ -x "$1/$program" ] || return; done; }
    are_in "$directory" "$@" && return
    mkdir -p "$directory" && unpacked=$(mktemp -d "$directory/.unpacked-XXXXXX") || return
    if command -v "$@" | wc -l | grep -qx $#; then
        mkdir -p "$unpacked/usr/bin" &&
            for program in "$@"; do ln -s "$(command -v "$program")" "$unpacked/usr/bin/" || break; done
    else
        (cd "$unpacked" && download "$package" && dpkg-deb -x ./*.deb .)
    fi
    are_in "$unpacked/usr/bin" "$@" &&
        for program in "$@"; do mv -f "$unpacked/usr/bin/$program" "$directory/" || break; done
    rm -rf "$unpacked"
    are_in "$directory" "$@"
}

# library_from_debian DIRECTORY PACKAGE FILE: a Debian package's library. It appears whole or not at all.
library_from_debian() {
    local directory=$1 package=$2 file=$3 unpacked
    [ -e "$directory/$file" ] && return
    mkdir -p "$directory" && unpacked=$(mktemp -d "$directory/.unpacked-XXXXXX") || return
    (cd "$unpacked" && download "$package" && dpkg-deb -x ./*.deb . && find usr -name "$file" -exec mv {} . \;) &&
        mv -f "$unpacked/$file" "$directory/"
    rm -rf "$unpacked"
    [ -e "$directory/$file" ]
}

# download PACKAGE: the file of a Debian package. On a fresh machine the lists of packages are fetched first: that needs root.
download() {
    apt-get download -qq "$1" 2>/dev/null || { [ "$(id -u)" = 0 ] && apt-get update -qq && apt-get download -qq "$1"; }
}
