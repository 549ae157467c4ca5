#!/usr/bin/env bash
# Install PostgreSQL with PL/Python and pgvector from Debian's packages, as root.
#
#   docker/install-postgres.sh [MAJOR]
#
# MAJOR is a version that this Debian has; by default its own. Where Debian has no package
# of pgvector 0.8 (bookworm), that is built from trixie's source package. Nothing is done
# twice, and no cluster is created.
set -euo pipefail

readonly PGVECTOR_SUITE=trixie
readonly PGVECTOR_MINIMUM=0.8.0

main() {
    [[ $EUID -eq 0 ]] || fail "this installs packages: run it as root"
    command -v apt-get > /dev/null || fail "this is for Debian: there is no apt-get here"
    local major=${1:-$(installed_major)}
    if [[ -n $major ]] && is_complete "$major"; then
        report "$major"
        return
    fi
    apt-get update -qq
    major=${major:-$(default_major)}
    is_complete "$major" || install_server "$major"
    report "$major"
}

fail() {
    echo "install-postgres.sh: $*" >&2
    exit 1
}

installed_major() {
    local folder
    for folder in /usr/lib/postgresql/*/; do
        folder=$(basename "$folder")
        ! is_complete "$folder" || echo "$folder"
    done | sort -n | tail -1
}

default_major() {
    apt-cache depends postgresql | sed -nE 's/^ +Depends: postgresql-([0-9]+)$/\1/p' | head -1
}

extension_dir() {
    echo "/usr/share/postgresql/$1/extension"
}

is_complete() {
    local folder
    folder=$(extension_dir "$1")
    [[ -f $folder/plpython3u.control && -f $folder/dblink.control && -f $folder/vector.control ]]
}

install_server() {
    apt_install postgresql-common
    # The package would otherwise create and start a cluster on port 5432.
    sed -ri 's/^#?create_main_cluster .*/create_main_cluster = false/' \
        /etc/postgresql-common/createcluster.conf
    apt_install "postgresql-$1" "postgresql-plpython3-$1"
    if has_pgvector_package "$1"; then
        apt_install "postgresql-$1-pgvector"
    else
        build_pgvector "$1"
    fi
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends "$@" > /dev/null
}

has_pgvector_package() {
    local found
    found=$(apt-cache policy "postgresql-$1-pgvector" | sed -nE 's/^ +Candidate: ([0-9].*)/\1/p')
    [[ -n $found ]] && dpkg --compare-versions "$found" ge "$PGVECTOR_MINIMUM"
}

build_pgvector() {
    local folder
    folder=$(mktemp -d)
    apt_install make gcc libc6-dev dpkg-dev "postgresql-server-dev-$1"
    (
        cd "$folder"
        fetch_source
        cd pgvector-*/
        # OPTFLAGS: for any machine, not for the one that builds.
        make --silent PG_CONFIG="/usr/lib/postgresql/$1/bin/pg_config" OPTFLAGS="" with_llvm=no
        make --silent PG_CONFIG="/usr/lib/postgresql/$1/bin/pg_config" with_llvm=no install > /dev/null
    )
    rm -rf "$folder"
}

# Into the current folder, by lists of its own: the machine's sources stay as they are.
fetch_source() {
    local site
    site=$(mirror)
    [[ -n $site ]] || fail "apt has no mirror of Debian: add one to its sources"
    mkdir -p lists/partial
    echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
        "$site $PGVECTOR_SUITE main" > sources.list
    local apt=(
        apt-get -qq
        -o "Dir::Etc::SourceList=$PWD/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$PWD/lists"
        -o Dir::Cache::srcpkgcache= -o Dir::Cache::pkgcache= -o APT::Sandbox::User=root
    )
    "${apt[@]}" update
    "${apt[@]}" source pgvector > /dev/null
}

mirror() {
    apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | awk '/debian$/ && !seen++'
}

report() {
    local vector
    vector=$(sed -nE "s/^default_version = '(.*)'/\1/p" "$(extension_dir "$1")/vector.control")
    echo "PostgreSQL $1 with PL/Python and pgvector $vector: /usr/lib/postgresql/$1/bin"
}

main "$@"
