#!/bin/sh
# Print the newest Python from 3.11 to 3.14 that can create virtual environments, among the given commands or, without
# any, among those on PATH and those of pyenv.
#   sh tools/find_python.sh [COMMAND ...]

versions="3.14 3.13 3.12 3.11"
pyenv_root=$(pyenv root 2> /dev/null)

# suits VERSION COMMAND: whether COMMAND runs, has VERSION, and has venv with ensurepip (separate packages in Debian)
suits() {
  "$2" -c "import sys, ensurepip, venv; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2> /dev/null
}

# candidates VERSION: pyenv has a shim on PATH for every version, but only the shims of selected versions run
candidates() {
  echo "python$1"
  if [ -n "$pyenv_root" ]; then ls -d "$pyenv_root/versions/$1".*/bin/"python$1" 2> /dev/null; fi
  echo python3
  echo python
}

for version in $versions; do
  for command in ${*:-$(candidates "$version")}; do
    if suits "$version" "$command"; then
      command -v "$command"
      exit 0
    fi
  done
done
echo "error: expected a Python of $versions with its venv module, got ${*:-none}. Fix: install one (Debian and" \
  "Ubuntu: apt install python3-venv), or name another: make PYTHON=..." >&2
exit 2
