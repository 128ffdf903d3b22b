#!/usr/bin/env bash
# unpack_debs.sh ARCHITECTURE FOLDER PACKAGE...: unpacks Debian 12 packages, and not what they depend on, into FOLDER.
# Keeps lists and downloads of its own: needs no root, installs nothing, and leaves the machine's apt as it is.
set -euo pipefail
architecture=$1 folder=$2
shift 2
mirror=${DEBIAN_MIRROR:-http://deb.debian.org}
key=/usr/share/keyrings/debian-archive-keyring.gpg
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists/partial,cache/archives/partial,debs} "$folder"
: >"$work/status"
cat >"$work/sources.list" <<END
deb [signed-by=$key] $mirror/debian bookworm main
deb [signed-by=$key] $mirror/debian-security bookworm-security main
END
cat >"$work/apt.conf" <<END
APT::Architecture "$architecture";
APT::Architectures { "$architecture"; };
APT::Sandbox::User "$(id -un)";
Dir::State::Lists "$work/lists";
Dir::State::Status "$work/status";
Dir::Cache "$work/cache";
Dir::Etc::SourceList "$work/sources.list";
Dir::Etc::SourceParts "/dev/null";
Acquire::Retries "3";
END
export APT_CONFIG=$work/apt.conf
apt-get --quiet --quiet update
(cd "$work/debs" && apt-get --quiet --quiet download "$@")
for deb in "$work"/debs/*.deb; do dpkg-deb --extract "$deb" "$folder"; done
