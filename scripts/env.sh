#!/usr/bin/env bash
# Set up the project's environment once and print its folder.
#
# The folder lies outside the checkout and is named by a hash of the pinned requirements, so every clone with the same pins
# shares it. DVPO_ENV_DIR names another folder; DVPO_ENGINE=cpu|cuda overrides what the machine is taken for; with
# DVPO_RUNTIME_ONLY=1 it holds what runs the project, without what tests and checks it.
set -euo pipefail
cd "$(dirname "$0")/.."

engine=${DVPO_ENGINE:-auto}
if [ "$engine" = auto ]; then
    if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then engine=cuda; else engine=cpu; fi
fi
pins=requirements/$engine${DVPO_RUNTIME_ONLY:+-runtime}.txt
[ -f "$pins" ] || { echo "scripts/env.sh: DVPO_ENGINE must be cpu or cuda, not '$engine'" >&2; exit 2; }

python=${DVPO_PYTHON:-}
for candidate in python3.11 python3.12 python3.13 python3; do
    [ -z "$python" ] && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && python=$candidate
done
[ -n "$python" ] || { echo "scripts/env.sh: needs Python 3.11 to 3.13; install one or set DVPO_PYTHON" >&2; exit 2; }

key=$({ cat "$pins"; "$python" -V; } | sha256sum | cut -c1-12)
env=${DVPO_ENV_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/dvpo_ray/env-$engine-$key}
if [ -f "$env/.complete-$key" ]; then echo "$env"; exit 0; fi

mkdir -p "$(dirname "$env")"
exec 9>"$env.lock"
flock 9
if [ ! -f "$env/.complete-$key" ]; then
    echo "Setting up the $engine environment in $env (once; about 4 GB)" >&2
    "$python" -m venv --clear "$env" >&2
    "$env/bin/python" -m pip install --quiet --disable-pip-version-check "uv==0.13.8" >&2
    # uv does not read pip's configuration: pass on what points to packages.
    setting() { "$env/bin/python" -m pip config get "global.$1" 2>/dev/null || true; }
    links=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$(setting find-links)}}
    index=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$(setting index-url)}}
    # A CPU build of torch that lies here would stand in for the one with CUDA.
    if [ "$engine" = cuda ] && compgen -G "${links%% *}/torch-*+cpu*" >/dev/null; then links=; unset UV_FIND_LINKS; fi
    [ -n "$links" ] && export UV_FIND_LINKS="${links// /,}"
    [ -n "$index" ] && export UV_DEFAULT_INDEX="$index"
    options=()
    # A local torch wheel decides; otherwise PyTorch's own index for this kind of machine.
    if ! { [ -n "$links" ] && compgen -G "${links%% *}/torch-*" >/dev/null; }; then
        if [ "$engine" = cpu ]; then options+=(--torch-backend cpu)
        # An image for GPUs is built where there is none: it gets the CUDA build that torch comes with by default.
        elif command -v nvidia-smi >/dev/null; then options+=(--torch-backend auto); fi
    fi
    "$env/bin/uv" pip install --quiet --python "$env/bin/python" --no-deps --compile-bytecode "${options[@]}" -r "$pins" >&2
    touch "$env/.complete-$key"
    echo "Environment ready" >&2
fi
echo "$env"
