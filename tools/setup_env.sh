#!/usr/bin/env bash
# Makes .venv, or brings it up to date: tools/setup_env.sh demo|full|upstream
#   demo      what segmentation and the demo need; mmcv without compiled operators
#   full      also detection, mmpretrain, tests, linting and the site; mmcv with compiled operators, built once and kept in the user's cache
#   upstream  .venv-upstream instead: the original OpenMMLab packages, tests, mmcv with compiled operators
# The original packages and the onedl-* ones have the same import names: they never share an environment.
# PYTHON picks the interpreter. If it has a torch built for CUDA (or ROCm), that torch is used instead of a new one.
# Safe to run again, also after an interruption.
set -euo pipefail
cd "$(dirname "$0")/.."

mode=${1:-}
python=${PYTHON:-python3}
venv=.venv
mmcv=onedl-mmcv

case $mode in
    demo) requirements=(requirements/base.txt) ;;
    full) requirements=(requirements/{base,detection,mmpretrain,serve,dev,docs}.txt) ;;
    upstream) venv=.venv-upstream mmcv=mmcv requirements=(requirements/upstream.txt) ;;
    *) echo "usage: $0 demo|full|upstream" >&2; exit 2 ;;
esac
venv_python=$venv/bin/python
log=$venv/setup.log
constraints=$venv/constraints.txt
stamp=$venv/setup.stamp

# A full set-up also serves the demo. The folder is part of the key: a moved project has to be installed again.
key=$({ echo "$PWD"; cat requirements.txt requirements/*.txt pyproject.toml "$0"; } | cksum)
if [ -x $venv_python ] && [ -f $stamp ] && { grep -qxF "$mode $key" $stamp || grep -qxF "full $key" $stamp; }; then
    echo "Environment: $venv is up to date."
    exit
fi

say() { echo "Environment: $*"; }

fail() {
    echo "Environment: failed: $*" >&2
    echo "The last lines of $log:" >&2
    tail -n 20 $log >&2
    exit 1
}

logged() { echo "+ $*" >>$log; "$@" >>$log 2>&1; }

pip() { logged $venv_python -m pip -qq --no-input "$@"; }

# Some containers set PIP_CONSTRAINT to protect their torch, and pin much else by it; $constraints protects torch too.
unset PIP_CONSTRAINT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_USER=0

pin() { sed -n "s/^$1==//p" requirements.txt requirements/upstream.txt; }

installed() {  # the version of an installed package, or a failure
    $venv_python -c "import sys; from importlib.metadata import version; print(version(sys.argv[1]))" "$1" 2>/dev/null
}

has_gpu_torch() {
    "$1" -c 'import sys, torch; sys.exit(not (torch.version.cuda or torch.version.hip))' 2>/dev/null
}

# An interrupted pip leaves packages without a RECORD, which it would take for installed.
for info in $venv/lib/python*/site-packages/*.dist-info; do
    [ ! -d "$info" ] || [ -e "$info/RECORD" ] || rm -rf "$info"
done

mkdir -p $venv
: >$log
rm -f $stamp

# 1. The virtual environment
if ! { installed pip && installed torch; } >/dev/null; then
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' ||
        { echo "Environment: $python is not Python 3.11 to 3.13; choose one with PYTHON=..." >&2; exit 1; }
    if has_gpu_torch "$python"; then
        say "using the torch of $python, which is built for GPUs"
        logged "$python" -m venv --system-site-packages $venv || fail "$python -m venv"
        # If $python is itself from a virtual environment, the new one sees only the interpreter below both.
        if "$python" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)'; then
            site='import sysconfig; print(sysconfig.get_path("purelib"))'
            "$python" -c "$site" >"$($venv_python -c "$site")/parent_env.pth"
        fi
        { has_gpu_torch $venv_python && installed torch >/dev/null; } ||
            fail "the torch of $python cannot be used in $venv"
    else
        logged "$python" -m venv $venv || fail "$python -m venv"
    fi
fi
pip install -r requirements/build.txt || fail 'installing the build tools'

# 2. torch and torchvision; from here on pip may not replace them
if ! installed torch >/dev/null; then
    say "installing torch $(pin torch)"
    pip install "torch==$(pin torch)" || fail 'installing torch'
fi
torch=$(installed torch)
if ! installed torchvision >/dev/null; then
    torchvision=$(pin torchvision)
    if [ "${torch%%+*}" != "$(pin torch)" ]; then
        minor=${torch#*.}
        torchvision="0.$((${minor%%.*} + 15)).*"  # torchvision 0.(x + 15) is the match for torch 2.x
    fi
    # Its dependencies would include another build of torch where ours is not from the same index.
    pip install --no-deps "torchvision==$torchvision" || fail 'installing torchvision'
fi
{
    echo "torch==$torch"
    echo "torchvision==$(installed torchvision)"
    grep -hE '^[A-Za-z0-9_.-]+==' requirements.txt requirements/*.txt | grep -vE '^torch(vision)?=='
} >$constraints

# 3. Everything else but mmcv. The OpenMMLab packages are source distributions: quicker without build isolation.
say "installing the packages for $mode (torch $torch)"
cat "${requirements[@]}" | grep -v "^$mmcv==" >$venv/requirements.txt
pip install -c $constraints --no-build-isolation -r $venv/requirements.txt || fail 'installing the packages'
[ "$mode" = demo ] || pip install --no-deps -r requirements/panoptic.txt || fail 'installing panopticapi'
logged $venv_python -m apla_mm repair-torchvision || fail 'importing torchvision'

# 4. mmcv. Never through pip's cache, which does not tell a wheel with compiled operators from one without.
has_mmcv() { [ "$(installed $mmcv)" = "$(pin $mmcv)" ]; }

has_mmcv_ops() { has_mmcv && logged $venv_python -c 'import mmcv.ops'; }

install_mmcv_ops() {
    local build cache kind wheel
    # A wheel fits one torch, Python, platform and kind of operators: "cpu", or CUDA's version and the GPU's.
    kind=$($venv_python - 2>>$log <<'PY'
import os, sys, sysconfig, torch
from torch.utils.cpp_extension import CUDA_HOME
kind = 'cpu'
if torch.version.cuda and (torch.cuda.is_available() or os.environ.get('FORCE_CUDA') == '1'):
    kind = 'no-nvcc'
    if CUDA_HOME:
        archs = os.environ.get('TORCH_CUDA_ARCH_LIST')
        if not archs and torch.cuda.is_available():
            archs = '{}.{}'.format(*torch.cuda.get_device_capability())
        kind = f'cuda{torch.version.cuda}-{archs or "default"}'.replace(' ', '_').replace(';', '_')
print(f'torch{torch.__version__}-{sys.implementation.cache_tag}-{sysconfig.get_platform()}-{kind}')
PY
    ) || fail 'importing torch'
    if [ "$kind" != "${kind%-no-nvcc}" ]; then
        say 'no CUDA compiler (nvcc, CUDA_HOME) found: mmcv gets CPU operators, detectors cannot use the GPU'
        kind=${kind%-no-nvcc}-cpu
        # mmcv would build CUDA operators as soon as it sees a GPU
        export CUDA_VISIBLE_DEVICES='' FORCE_CUDA=0
    fi

    cache=${XDG_CACHE_HOME:-$HOME/.cache}/apla_mm/wheels/$kind
    for wheel in "$cache/${mmcv//-/_}-$(pin $mmcv)"-*.whl; do
        [ -e "$wheel" ] || break
        say "installing mmcv's compiled operators from $cache"
        pip install --force-reinstall --no-deps "$wheel" || fail 'installing mmcv'
        has_mmcv_ops || fail "mmcv.ops cannot be imported; remove $wheel and try again to build it anew"
        return
    done
    say "building mmcv's compiled operators, once for this torch: about 6.5 minutes on 2 cores, longer with CUDA"
    # Built beside its place, and moved there once it is known to work.
    build=$cache/build-$mmcv
    rm -rf "$build"
    mkdir -p "$build"
    # Without debug information (-g0) the build takes less than half the time.
    CFLAGS="${CFLAGS:-} -g0" pip wheel --no-cache-dir --no-deps --no-build-isolation -w "$build" \
        "$mmcv==$(pin $mmcv)" || fail 'building mmcv'
    pip install --force-reinstall --no-deps "$build"/*.whl || fail 'installing mmcv'
    has_mmcv_ops || fail 'mmcv.ops cannot be imported'
    mv "$build"/*.whl "$cache"
    rmdir "$build"
}

if [ "$mode" != demo ]; then
    has_mmcv_ops || install_mmcv_ops
elif ! has_mmcv; then
    # Build isolation hides torch from mmcv's build, which then leaves the operators out.
    pip install --no-cache-dir --no-deps "$mmcv==$(pin $mmcv)" || fail 'installing mmcv'
fi

# 5. The project itself, and a test of it all
pip install --no-deps --no-build-isolation -e . || fail 'installing the project'
# Only the last line: mmengine prints one of its own on import.
versions=$($venv_python -m apla_mm check-env "$mode" 2>>$log | tail -n 1) ||
    fail 'the installed packages cannot be imported'
echo "$mode $key" >$stamp
say "ready: $versions"
