#!/usr/bin/env bash
# Everything into .venv: Python 3.11+, echat (editable) with all extras, and the Debian packages that the
# corpus, the intelligibility measure, tests of the page and talking in the terminal use. A stamp remembers
# what was done, so that the next call is instant and needs no network. Remove .venv to start over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

speech_packages=(espeak-ng flite festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts
    sox libsox-fmt-all pocketsphinx pocketsphinx-en-us)
talking_packages=(chromium libportaudio2)
stamp=.venv/.setup-done

node_client=tests/serve/agents_client

wanted() { # one line that changes when there is something to do again
    { pwd; cat pyproject.toml constraints.txt scripts/setup.sh "$node_client/package.json"; } | sha256sum
}

say() { echo "setup: $*" >&2; }

can_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

apt_install() {
    apt-get update -qq >&2 &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" </dev/null >&2
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
        can_install && apt_install python3 python3-venv || true
        python=$(find_python) || {
            say "expected Python 3.11 or newer with the venv module, found none;" \
                "install python3 and python3-venv, or set PYTHON=/path/to/python3.11"
            exit 1
        }
    fi
    say "making .venv with $("$python" --version)"
    "$python" -m venv .venv
}

install_debian_packages() { # "why" package ...: without them setup goes on
    local why=$1 name missing=()
    shift
    command -v dpkg-query >/dev/null || return 0
    for name in "$@"; do
        dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || missing+=("$name")
    done
    [ ${#missing[@]} = 0 ] && return
    if can_install; then
        say "installing ${missing[*]}"
        apt_install "${missing[@]}" && return
    fi
    say "$why needs Debian packages:"
    say "  sudo apt-get install ${missing[*]}"
}

install_node_client() { # a JavaScript client that the tests of the server talk with; without it they are skipped
    command -v node >/dev/null && command -v npm >/dev/null || return 0
    (cd "$node_client" && npm install --silent --no-audit --no-fund --no-package-lock </dev/null >&2) ||
        say "the JavaScript client did not install: its tests will be skipped"
}

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(wanted)" ]; then
    exit 0
fi
[ -x .venv/bin/python ] || make_environment
install_debian_packages "building corpora and measuring intelligibility" "${speech_packages[@]}"
install_debian_packages "testing the page and talking in the terminal" "${talking_packages[@]}"
say "installing echat with its extras (a few minutes the first time)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' </dev/null
install_node_client
wanted >"$stamp"
say "done"
