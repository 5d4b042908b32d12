#!/bin/sh
# Installs sdzero from this folder and from nothing else; no network is used.
#
#   sh install.sh [--to FOLDER] [--python PROGRAM] [--no-smoke-run]
#
# --to            where the environment is made (default: venv in this folder)
# --python        which Python to use; it must be Python @python@ (default: python@python@, then python3)
# --no-smoke-run  leave out the checks and the short run at the end
set -eu
LC_ALL=C
export LC_ALL

die() {
    echo "error: $1" >&2
    echo "  to do: $2" >&2
    exit 1
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
started=$(pwd)
to=$here/venv
python=
smoke=yes
while [ $# -gt 0 ]; do
    case $1 in
        --to | --python)
            [ $# -ge 2 ] || die "$1 needs a value" "see the first lines of this file"
            if [ "$1" = --to ]; then to=$2; else python=$2; fi
            shift 2
            ;;
        --no-smoke-run)
            smoke=no
            shift
            ;;
        *) die "there is no option $1" "see the first lines of this file" ;;
    esac
done
case $to in
    /*) ;;
    *) to=$started/$to ;;
esac
cd "$here"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

echo "1. every file is as it was made (sha256sum)"
command -v sha256sum > /dev/null || die "there is no sha256sum" "install the coreutils of your distribution"
if ! sha256sum -c SHA256SUMS > "$scratch/checked" 2>&1; then
    grep -v ': OK$' "$scratch/checked" >&2 || true
    die "files of the bundle are missing or have changed: see above" "copy the bundle again"
fi
cut -c67- SHA256SUMS | sort > "$scratch/listed"
find . \( -path ./venv -o -path ./runs \) -prune -o ! -type d -print | sed 's|^\./||' \
    | grep -v '^SHA256SUMS$' | sort > "$scratch/present"
comm -13 "$scratch/listed" "$scratch/present" > "$scratch/extra"
if [ -s "$scratch/extra" ]; then
    cat "$scratch/extra" >&2
    die "files are here that are no part of the bundle: see above" "remove them, or copy the bundle again"
fi

echo "2. this machine"
[ "$(uname -s)" = Linux ] || die "the bundle is for Linux, and this is $(uname -s)" "make one for this machine"
[ "$(uname -m)" = "@machine@" ] \
    || die "the bundle is for @machine@, and this is $(uname -m)" "make one with --platform for this machine"
libc=$(getconf GNU_LIBC_VERSION 2> /dev/null) \
    || die "there is no glibc here" "the bundle needs a Linux with glibc @glibc_major@.@glibc_minor@ or newer"
libc=${libc#glibc }
libc_rest=${libc#*.}
if [ "${libc%%.*}" -lt "@glibc_major@" ] || {
    [ "${libc%%.*}" -eq "@glibc_major@" ] && [ "${libc_rest%%.*}" -lt "@glibc_minor@" ]
}; then
    die "the bundle needs glibc @glibc_major@.@glibc_minor@ or newer, and this is $libc" \
        "make one with an older --platform, on a machine with an older glibc"
fi

says() {
    "$1" -I -c 'import sys; print(sys.implementation.name, "%d.%d" % sys.version_info[:2])' 2> /dev/null || true
}
if [ -z "$python" ]; then
    for one in python@python@ python3; do
        if [ "$(says "$one")" = "cpython @python@" ]; then
            python=$one
            break
        fi
    done
    [ -n "$python" ] || die "there is no Python @python@ here (python3 is: $(says python3))" \
        "install Python @python@, or name it: sh install.sh --python PROGRAM"
fi
[ "$(says "$python")" = "cpython @python@" ] \
    || die "the bundle is for Python @python@, and $python is: $(says "$python")" "name another one in --python"
"$python" -I -c 'import venv, ssl, sqlite3' 2> "$scratch/python" || {
    cat "$scratch/python" >&2
    die "this Python lacks a part of its standard library: see above" \
        "install all of Python @python@ (Debian, Ubuntu: python@python@-venv)"
}

echo "3. the environment, in $to"
if [ -e "$to" ] && [ ! -f "$to/pyvenv.cfg" ] && [ -n "$(ls -A "$to")" ]; then
    die "there is something else in $to" "name another folder: sh install.sh --to FOLDER"
fi
# Nothing of this user's set-up of Python or pip plays a part.
unset PYTHONPATH PYTHONHOME PYTHONSTARTUP
PIP_CONFIG_FILE=/dev/null
export PIP_CONFIG_FILE
"$python" -I -m venv --without-pip --clear "$to"
set -- wheels/pip-*.whl
"$to/bin/python" -I "$1/pip" --isolated --disable-pip-version-check --quiet install \
    --no-index --find-links wheels --require-hashes --no-cache-dir --no-warn-script-location \
    --requirement requirements.txt
if [ -d code ]; then
    site=$("$to/bin/python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    printf '%s\n' "$here/code" > "$site/sdzero-bundle.pth"
fi

if [ "$smoke" = yes ]; then
    echo "4. sdzero doctor, with the recipe"
    "$to/bin/sdzero" doctor recipe.yaml \
        || die "a check of sdzero doctor did not hold: see above; the command is installed: $to/bin/sdzero" \
            "mend what it names, then: cd $here && $to/bin/sdzero doctor recipe.yaml"
    echo "5. a short run of the embedded model"
    "$to/bin/sdzero" run smoke.yaml --output "$scratch/smoke" > "$scratch/smoke.log" 2>&1 || {
        cat "$scratch/smoke.log" >&2
        die "the short run failed: see above" "the command is installed: $to/bin/sdzero"
    }
    grep 'results:' "$scratch/smoke.log" > /dev/null || die "the short run has no results" "report it as a fault"
fi

echo "done. The command is:"
echo "  $to/bin/sdzero"
echo "Start the recipe in this folder, for its paths begin here:"
echo "  cd $here && $to/bin/sdzero run recipe.yaml --output runs/@name@"
