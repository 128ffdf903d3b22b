#!/usr/bin/env bash
# arm64_root.sh FOLDER: what runs detect.py as a 64-bit ARM machine would. FOLDER/python SCRIPT... then is Python 3.11 with
# numpy, Pillow, tflite-runtime and pytest, run by qemu's user mode: no root, no container. Needs Debian or Ubuntu on x86-64, pip.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)
"$here/unpack_debs.sh" amd64 "$folder/host" qemu-user-static
"$here/unpack_debs.sh" arm64 "$folder/root" libc6 libgcc-s1 libstdc++6 zlib1g libgomp1 python3.11-minimal libpython3.11-minimal \
  libpython3.11-stdlib libexpat1 libssl3 libffi8 liblzma5 libbz2-1.0 libsqlite3-0 libuuid1 libcrypt1 media-types
# pip never runs inside: a wheel is a zip. Each project names another version of glibc in its wheels.
platforms=(manylinux2014_aarch64 manylinux_2_17_aarch64 manylinux_2_27_aarch64 manylinux_2_28_aarch64 manylinux_2_34_aarch64)
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 --implementation cp --abi cp311 \
  "${platforms[@]/#/--platform=}" --dest "$folder/wheels" 'numpy<2' 'Pillow>=10.1' tflite-runtime==2.14.0 \
  pytest iniconfig packaging pluggy pygments
for wheel in "$folder"/wheels/*.whl; do "${PYTHON:-python3}" -m zipfile --extract "$wheel" "$folder/site"; done
cat >"$folder/.python" <<'END'
#!/bin/sh
folder=$(dirname "$0")
PYTHONPATH=$folder/site exec "$folder/host/usr/bin/qemu-aarch64-static" -L "$folder/root" "$folder/root/usr/bin/python3.11" "$@"
END
chmod +x "$folder/.python"
"$folder/.python" -c 'import platform, numpy, PIL.Image, tflite_runtime.interpreter; print(platform.machine(), numpy.__version__)'
mv "$folder/.python" "$folder/python"
