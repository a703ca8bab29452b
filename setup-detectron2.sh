#!/bin/sh
# Usage: setup-detectron2.sh PYTHON SOURCE
# Install Detectron2 into PYTHON's environment, which must contain torch, from SOURCE: a git
# address (git+https://…@commit), a local clone or a wheel.
# Exit code 0: installed; 1: not installed, the project works without it; 2: failed.
set -u
python=$1
source=$2

# Required in CI and from a source that the user passes, otherwise optional.
without() {
    cat >&2 <<MESSAGE
$1
MESSAGE
    case $source in git+*) test -n "${CI:-}" && exit 2 ;; *) exit 2 ;; esac
    echo "Continuing without it: training and prediction use torchvision. make setup tries again." >&2
    exit 1
}

unreachable() {
    without "Detectron2's source can't be reached: $1
Install it without a network: clone https://github.com/facebookresearch/detectron2 (commit
02b5c4e295e990042a714712c21dc79b731e8833) or build its wheel on another machine, copy it here
and pass its path:
    make setup DETECTRON2=/path/to/detectron2
    make setup DETECTRON2=/path/to/detectron2-0.6-….whl"
}

case $source in
git+*)
    address=${source#git+}
    # The commit follows the last @, unless that is the one of user@host.
    case ${address##*@} in */*) ;; *) address=${address%@*} ;; esac
    command -v git >/dev/null || unreachable "git is not installed"
    # A server without an answer for 20 seconds is unreachable.
    GIT_TERMINAL_PROMPT=0 GIT_HTTP_LOW_SPEED_LIMIT=1 GIT_HTTP_LOW_SPEED_TIME=20 \
        git ls-remote --exit-code "$address" HEAD >/dev/null 2>&1 ||
        unreachable "no answer from $address"
    ;;
*) test -e "$source" || unreachable "$source does not exist" ;;
esac

# Its setup.py imports torch, so build isolation is off.
"$python" -m pip install --disable-pip-version-check --no-build-isolation "$source" ||
    without "Detectron2 could not be built from $source: see the messages above. It needs a C++
compiler (on Debian or Ubuntu: apt install g++ python3-dev). If the CUDA versions of nvcc and
torch differ, build it without CUDA, which the recipes don't need on a GPU either:
CUDA_VISIBLE_DEVICES= make setup"
