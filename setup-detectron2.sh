#!/bin/sh
# Usage: setup-detectron2.sh PYTHON SOURCE
# Installs Detectron2 into PYTHON's environment from SOURCE: a git address
# (git+https://…@commit), a local clone or a wheel. Torch must be there already.
# Exit code 0: it is there; 1: it is not, and the project works without it; 2: mend it.
set -u
python=$1
source=$2

# What a person brings must be there; CI must have it; all others can do without.
without() {
    cat >&2 <<MESSAGE
$1
MESSAGE
    case $source in git+*) test -n "${CI:-}" && exit 2 ;; *) exit 2 ;; esac
    echo "Going on without it: training and prediction run on torchvision. make setup tries again." >&2
    exit 1
}

unreachable() {
    without "Detectron2's source can't be reached: $1
Bring it yourself: clone https://github.com/facebookresearch/detectron2 (commit
02b5c4e295e990042a714712c21dc79b731e8833) or build a wheel of it where there is a
network, copy it here, and name it:
    make setup DETECTRON2=/path/to/detectron2
    make setup DETECTRON2=/path/to/detectron2-0.6-….whl"
}

case $source in
git+*)
    address=${source#git+}
    # The commit is what follows the last @, unless that @ belongs to user@host.
    case ${address##*@} in */*) ;; *) address=${address%@*} ;; esac
    command -v git >/dev/null || unreachable "git is not installed"
    # A server that says nothing for 20 seconds counts as out of reach.
    GIT_TERMINAL_PROMPT=0 GIT_HTTP_LOW_SPEED_LIMIT=1 GIT_HTTP_LOW_SPEED_TIME=20 \
        git ls-remote --exit-code "$address" HEAD >/dev/null 2>&1 ||
        unreachable "git has no answer from $address"
    ;;
*) test -e "$source" || unreachable "$source does not exist" ;;
esac

# Its setup.py imports torch, so it builds in this environment and not in one of its own.
"$python" -m pip install --disable-pip-version-check --no-build-isolation "$source" ||
    without "Detectron2 could not be built from $source: see the messages above. It needs a C++
compiler (on Debian or Ubuntu: apt install g++ python3-dev). If nvcc is of another CUDA
than torch: CUDA_VISIBLE_DEVICES= make setup builds it without CUDA, which the recipes
don't need on a GPU either."
