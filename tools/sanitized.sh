#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# sanitized.sh BUILD BIN ARGUMENTS...: BIN/pytest on a copy of the package that has the sanitized library of BUILD.
set -eu
build=$(realpath "$1")
bin=$2
shift 2

site=$build/site
rm -rf "$site"
mkdir -p "$site"
cp -r maskattn_kernels "$site"
"$bin/cmake" --install "$build" --prefix "$site/maskattn_kernels"
grep -q __asan_init "$site/maskattn_kernels/lib/libmaskattn_cpu.so" || { echo "$build: not sanitized" >&2; exit 1; }

# Python itself is not sanitized, so the runtimes come first; libstdc++ too, or a thrown exception is not caught.
preload=
for library in libasan.so libubsan.so libstdc++.so; do
  preload="$preload $("${CXX:-c++}" -print-file-name=$library)"
done

# The copy wins over the installed package; Python's own allocations are never freed, hence no leak check.
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONMALLOC=malloc
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
export LD_PRELOAD="$preload"
# Captured by Python only: a sanitizer writes its report to the process's own stderr, and ends it.
"$bin/pytest" -c pyproject.toml --capture=sys "$@"
