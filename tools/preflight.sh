#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# preflight.sh PYTHON VENV: says what `make` lacks on this machine and how to get it, one line each.
python=$1
venv=$2
status=0

lacks() {
  echo "missing: $1" >&2
  status=1
}

if ! command -v "$python" >/dev/null; then
  lacks "python >= 3.10 (no '$python'): apt install python3 python3-venv, or: make PYTHON=/path/to/python3"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
  lacks "python >= 3.10 ('$python' is $("$python" -V 2>&1)): make PYTHON=/path/to/python3.10"
else
  "$python" -c 'import ensurepip, venv' 2>/dev/null || lacks "python's venv module: apt install python3-venv"
fi

found=
for compiler in ${CXX:-c++ g++ clang++}; do
  if command -v "$compiler" >/dev/null; then found=$compiler; break; fi
done
[ -n "$found" ] || lacks "a C++20 compiler (looked for ${CXX:-c++, g++, clang++}): apt install g++"

if [ ! -e "$venv/bin/pip" ]; then
  free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1024) }')
  [ "$free" -ge 3000 ] || lacks "disk space: about 3 GB for PyTorch and the tools, ${free} MB are free here"
fi
exit $status
