#!/usr/bin/env bash
# swiftshader.sh FOLDER: SwiftShader, the software Vulkan device of Chromium, and its loader. Run with LD_LIBRARY_PATH=FOLDER and
# VK_ICD_FILENAMES=FOLDER/vk_swiftshader_icd.json, LiteRT's GPU accelerator then works without a GPU. (Debian 12's lavapipe is too old.)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$(dirname "$0")/unpack_debs.sh" amd64 "$work" chromium-common
mkdir -p "$1"
cp "$work"/usr/lib/chromium/{libvk_swiftshader.so,vk_swiftshader_icd.json,libvulkan.so.1} "$1"
