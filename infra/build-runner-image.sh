#!/usr/bin/env bash
# Build the runner image, or find in a moment that it is current.
#
#   infra/build-runner-image.sh [--name NAME] [--base IMAGE | --debootstrap | --if-possible]
#
# --base         the image to start from (default: BASE_IMAGE, or python:3.11-slim-bookworm). A tag
#                moves; NAME@sha256:… does not. Once pulled, an image tells its digest:
#                docker image inspect --format '{{index .RepoDigests 0}}' python:3.11-slim-bookworm
# --debootstrap  make the base from Debian packages, where no image registry can be reached; needs
#                root and the debootstrap package. DEBIAN_MIRROR names another mirror; one of a day at
#                snapshot.debian.org should bring the same packages again (not tried).
# --if-possible  with whichever of the two works here; where none does, say so and end well, for
#                tools can run without Docker
#
# Python packages are downloaded here and go in with the build context: a container that builds
# needs no network and no certificates. An image is current when its labels hold the hash of all that
# goes into it, and the ID of its base as that is here now: after a `docker pull` that brought another
# one, it is built again. The registry itself is asked only for a base that is not here and is needed.
#
# What is in the image, as a CycloneDX bill of materials:
#   docker run --rm --entrypoint cat skriptoteket-runner /opt/skriptoteket/sbom.json
set -euo pipefail

NAME=skriptoteket-runner
BASE=${BASE_IMAGE:-python:3.11-slim-bookworm}
DEBOOTSTRAP=
IF_POSSIBLE=
MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
SUITE=bookworm
PYTHON_VERSION=3.11
PIP_REQUIREMENT='pip==25.3 --hash=sha256:9655943313a94722b7774661c21049070f6bbb0a1516bf02f7c8d5d9201514cd'
LABEL=org.skriptoteket.content
BASE_LABEL=org.skriptoteket.base

infra=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/skriptoteket

main() {
    while (($#)); do
        case $1 in
            --name) NAME=${2:?--name needs a value}; shift 2 ;;
            --base) BASE=${2:?--base needs a value}; shift 2 ;;
            --debootstrap) DEBOOTSTRAP=1; shift ;;
            --if-possible) IF_POSSIBLE=1; shift ;;
            -h | --help) sed -n '2,22s/^# \{0,1\}//p' "$0"; exit 0 ;;
            *) fail "unknown argument: $1" ;;
        esac
    done
    if ! timeout 10 docker version >/dev/null 2>&1; then
        give_up "no Docker daemon answers (see infra/start-docker.sh)"
    fi
    if [[ -n $IF_POSSIBLE ]]; then
        if is_made_of "$NAME" "$(content_of "$BASE")" "$BASE" ||
            is_made_of "$NAME" "$(DEBOOTSTRAP=1 content_of "$NAME-base")" "$NAME-base"; then
            echo "$NAME is current"
            return
        fi
        choose_way
    fi

    [[ -z $DEBOOTSTRAP ]] || BASE=$NAME-base
    local content
    content=$(content_of "$BASE")
    if is_made_of "$NAME" "$content" "$BASE"; then
        echo "$NAME is current"
        return
    fi
    if [[ -n $DEBOOTSTRAP ]]; then
        make_base
    elif [[ -z $(id_of "$BASE") ]]; then
        docker pull --quiet "$BASE"
    fi
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    fill_context "$work"
    docker build --build-arg "BASE_IMAGE=$BASE" --label "$LABEL=$content" \
        --label "$BASE_LABEL=$(id_of "$BASE")" --tag "$NAME" --file "$infra/runner.Dockerfile" "$work"
    echo "$NAME is built"
}

choose_way() {
    if [[ -n $(id_of "$BASE") ]] ||
        timeout 120 docker pull --quiet "$BASE" >/dev/null 2>&1; then
        return
    fi
    if command -v debootstrap >/dev/null && ((EUID == 0)); then
        DEBOOTSTRAP=1
        return
    fi
    give_up "$BASE cannot be pulled, and --debootstrap needs root and the debootstrap package"
}

content_of() { hash_of "$1" "${DEBOOTSTRAP:+$(base_content)}" "$(hash_files)"; }

# End for want of something: as a failure, unless an image was only wished for.
give_up() {
    [[ -n $IF_POSSIBLE ]] || fail "$*"
    echo "The runner image was not built: $*"
    exit 0
}

fail() {
    echo "build-runner-image: $*" >&2
    exit 1
}

hash_of() { printf '%s\0' "$@" | sha256sum | cut -c1-64; }

hash_files() {
    (cd "$infra" && sha256sum build-runner-image.sh runner.Dockerfile runner_sbom.py \
        runner/requirements.txt runner/apt-packages.txt runner/*.py)
}

is_current() { [[ $(inspect "$1" "{{index .Config.Labels \"$LABEL\"}}") == "$2" ]]; }

# Tell whether image $1 was made of content $2, from base $3 as it is here.
is_made_of() {
    local base
    base=$(id_of "$3")
    is_current "$1" "$2" &&
        [[ -z $base || $(inspect "$1" "{{index .Config.Labels \"$BASE_LABEL\"}}") == "$base" ]]
}

id_of() { inspect "$1" '{{.Id}}'; }

inspect() { docker image inspect --format "$2" "$1" 2>/dev/null || true; }

apt_packages() { tr '\n' ' ' <"$infra/runner/apt-packages.txt"; }

base_content() { hash_of "$SUITE" "$MIRROR" "$(declare -f make_base)" "$(apt_packages)"; }

# Debian with Python and all packages in, imported as an image: no registry, no apt inside Docker.
make_base() {
    local content root include
    content=$(base_content)
    if is_current "$BASE" "$content"; then
        return
    fi
    command -v debootstrap >/dev/null || fail "--debootstrap needs the debootstrap package"
    ((EUID == 0)) || fail "--debootstrap needs root"
    # Not /tmp, which may be small, or mounted without devices.
    root=$(mktemp -d /var/tmp/skriptoteket-base.XXXXXX)
    trap 'rm -rf "$root"' EXIT
    include=python3,$(apt_packages | xargs | tr ' ' ,)
    debootstrap --variant=minbase --include="$include" "$SUITE" "$root" "$MIRROR" >"$root.log" 2>&1 ||
        { tail -20 "$root.log" >&2; fail "debootstrap failed"; }
    rm -f "$root.log"
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/var/log/* \
        "$root"/usr/share/{info,locale,man}/* "$root"/dev/*
    # The copyright files stay: their licences ask for it, and the bill of materials reads them.
    find "$root/usr/share/doc" -type f ! -name copyright -delete
    tar -C "$root" --numeric-owner -c . | docker import --change "LABEL $LABEL=$content" \
        --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
        --change 'CMD ["python3"]' - "$BASE" >/dev/null
    rm -rf "$root"
    trap - EXIT
    echo "$BASE is built"
}

fill_context() {
    local context=$1 wheels
    wheels=$(download_wheels)
    mkdir "$context/runner"
    cp "$infra/runner/requirements.txt" "$infra/runner/apt-packages.txt" "$context/"
    cp "$infra/runner_sbom.py" "$context/"
    cp "$infra"/runner/*.py "$context/runner/"
    cp -r "$wheels" "$context/wheels"
    # What a user's umask says about this checkout must not decide who can read the image.
    chmod -R u=rwX,go=rX "$context"
}

# Print a directory with the wheels of requirements.txt and pip, for this architecture.
download_wheels() {
    local wheels requirements platforms
    requirements=$(mktemp)
    { cat "$infra/runner/requirements.txt"; echo "$PIP_REQUIREMENT"; } >"$requirements"
    wheels=$cache/wheels-$(uname -m)-$(sha256sum "$requirements" | cut -c1-16)
    if [[ ! -e $wheels/.complete ]]; then
        rm -rf "$wheels"
        mkdir -p "$wheels"
        for tag in manylinux2014 manylinux_2_17 manylinux_2_24 manylinux_2_26 manylinux_2_27 manylinux_2_28; do
            platforms+=" --platform ${tag}_$(uname -m)"
        done
        # shellcheck disable=SC2086 # options are words
        pip_command download --quiet --require-hashes --no-deps --only-binary=:all: \
            --implementation cp --python-version "$PYTHON_VERSION" --abi cp311 --abi abi3 --abi none \
            $platforms --dest "$wheels" --requirement "$requirements" >&2
        touch "$wheels/.complete"
    fi
    rm -f "$requirements"
    echo "$wheels"
}

# Run pip, wherever there is one: only some Pythons have it, and uv cannot download.
pip_command() {
    local python
    for python in "$infra/../.venv/bin/python" python3 python; do
        if "$python" -m pip --version >/dev/null 2>&1; then
            "$python" -m pip "$@"
            return
        fi
    done
    for uv in "$infra/../.venv/bin/uv" uv; do
        if "$uv" --version >/dev/null 2>&1; then
            "$uv" tool run pip "$@"
            return
        fi
    done
    fail "neither pip nor uv is here to download Python packages with"
}

# A test sources this file, and calls it with less to build.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    main "$@"
fi
