#!/usr/bin/env bash
# scripts/setup.sh run|serve|test: what a spoken reply needs (run), what the server needs beside it (serve), or
# everything that tests, training and corpora need (test), into .venv. Stamps record what was done: the next
# call is instant and needs no network. Remove .venv to start over.
#
# Only `test` installs Debian packages, and only as root; without them it goes on, and tests that need one of
# them are skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

level=${1:-test}
node_client=tests/serve/agents_client
frameworks=tests/serve/clients/requirements.txt

case $level in
    run) extras='' brings="installing what a spoken reply needs" covers=(run serve test) ;;
    serve) extras='[serve]' brings="installing what the server needs" covers=(serve test) ;;
    test) extras='[dev]' brings="installing what tests, training and corpora need" covers=(test) ;;
    *) echo "setup: expected run, serve or test, found '$level'" >&2; exit 2 ;;
esac

wanted() { # one line that changes when there is something to do again
    { pwd; cat pyproject.toml constraints.txt scripts/setup.sh "$node_client/package.json" "$frameworks"; } | sha256sum
}

is_done() {
    local level
    for level in "${covers[@]}"; do
        [ "$(cat ".venv/.setup-$level" 2>/dev/null)" = "$(wanted)" ] && return
    done
    return 1
}

say() { echo "setup: $*" >&2; }

can_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

apt_install() {
    apt-get update -qq >&2 &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" </dev/null >/dev/null
}

find_python() { # the first Python >= 3.11 that can make environments
    local name
    for name in ${PYTHON:-} python3.12 python3.11 python3.13 python3 python3.14; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    return 1
}

make_environment() {
    local python
    if ! python=$(find_python); then
        [ "$level" = test ] && can_install && apt_install python3 python3-venv || true
        python=$(find_python) || {
            say "expected Python 3.11 or newer with the venv module, found none;" \
                "install python3 and python3-venv, or set PYTHON=/path/to/python3.11"
            exit 1
        }
    fi
    "$python" -m venv .venv
}

install_debian_packages() { # "what for" package ...
    local what_for=$1 name missing=()
    shift
    command -v dpkg-query >/dev/null || return 0
    for name in "$@"; do
        dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || missing+=("$name")
    done
    [ ${#missing[@]} = 0 ] && return
    if can_install; then
        say "Debian packages for $what_for: ${missing[*]}"
        apt_install "${missing[@]}" && return
    fi
    say "not installed, for $what_for: sudo apt-get install ${missing[*]}"
}

install_node_client() { # a JavaScript client that the tests of the server use; without it they are skipped
    command -v node >/dev/null && command -v npm >/dev/null || return 0
    [ -d "$node_client/node_modules" ] || say "npm packages for tests with a JavaScript client of the server"
    (cd "$node_client" && npm install --silent --no-audit --no-fund --no-package-lock </dev/null >&2) ||
        say "the JavaScript client did not install: its tests will be skipped"
}

show_progress() { # of pip: on a terminal one line that says what it is at, elsewhere nothing
    local line
    while read -r line; do
        [ -t 2 ] && case $line in
            Collecting* | Downloading* | Installing*) printf '\r\033[Ksetup: %.72s' "$line" >&2 ;;
        esac
    done
    [ -t 2 ] && printf '\r\033[K' >&2
    return 0
}

can_compile() { # what has no wheels
    command -v g++ >/dev/null &&
        [ -f "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ]
}

install_python_packages() { # not compiled beforehand: Python does so on the first import of what is used
    local began=$SECONDS count log=.venv/setup.log
    say "$brings, for $(.venv/bin/python --version) (torch: 200 MB; several GB where pip takes a CUDA build) ..."
    .venv/bin/python -m pip install --no-compile --disable-pip-version-check -c constraints.txt -e ".$extras" \
        </dev/null 2>"$log" | show_progress || { # what pip remarks is of interest only when it fails
        cat "$log" >&2
        say "pip could not install them: see above; without a network a filled pip cache is needed"
        exit 1
    }
    count=$(find .venv/lib/python3*/site-packages -maxdepth 1 -name '*.dist-info' | wc -l)
    say "$count Python packages in .venv after $((SECONDS - began)) s"
}

install_frameworks() { # voice frameworks that the tests of the server use; without them they are skipped
    say "installing voice frameworks for the tests of the server into .venv/clients"
    [ -x .venv/clients/bin/python ] || .venv/bin/python -m venv .venv/clients
    .venv/clients/bin/python -m pip install --quiet --disable-pip-version-check -r "$frameworks" </dev/null 2>>.venv/setup.log ||
        say "the voice frameworks did not install: their tests will be skipped"
}

if is_done; then exit 0; fi
[ -x .venv/bin/python ] || make_environment
if [ "$level" = test ]; then
    install_debian_packages "the voices of corpora and the speech recogniser of the evaluation" \
        espeak-ng flite festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts \
        sox libsox-fmt-all pocketsphinx pocketsphinx-en-us g++ python3-dev
    install_debian_packages "tests of the page in a browser, and talking in the terminal" chromium libportaudio2
fi
if [ "$level" = test ]; then
    if can_compile; then extras='[dev,pico]'; else say "no C++ compiler: two voices of corpora are left out"; fi
fi
install_python_packages
if [ "$level" = test ]; then
    install_node_client
    install_frameworks
fi
wanted >".venv/.setup-$level"
