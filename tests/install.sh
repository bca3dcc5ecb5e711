#!/usr/bin/env bash
# Installs what `make test` and `make demo` need beyond make, a C compiler and Rust.
set -euo pipefail
echo "install: nothing yet"
