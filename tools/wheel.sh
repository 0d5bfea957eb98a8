#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# wheel.sh FOLDER: builds a wheel into FOLDER that serves every Python >= 3.10 and torch >= 2.11 of this platform.
# python, auditwheel and patchelf come from PATH.
set -eu
out=$1
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT

MASKATTN_BUILD=${MASKATTN_BUILD:-cpu} python -m pip --disable-pip-version-check wheel --no-build-isolation --no-deps \
  -w "$built" .
# torch's libraries are not copied into the wheel: the process has loaded them from its own torch. They bring the one
# OpenMP runtime too, since our libraries run on torch's threads and link none themselves. auditwheel names the oldest
# glibc that the wheel needs in its file name.
auditwheel repair --exclude 'libtorch*.so*' --exclude 'libc10*.so*' -w "$out" "$built"/*.whl
