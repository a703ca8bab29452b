"""Scripts in processes forked from one that has loaded the libraries: a start takes seconds.

That process has loaded nothing of this project, so that scripts import all of it themselves, also
where a library is barred; `bench/forks.py` forks a process that has loaded the project too.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]

Run = Callable[..., subprocess.CompletedProcess[str]]

LIBRARIES = (
    "torch", "torch._dynamo", "torch.utils.tensorboard", "torchvision", "detectron2.engine",
    "detectron2.modeling", "scipy.stats", "cv2", "tifffile", "matplotlib.figure",
)  # fmt: skip

_SERVER = """\
import gc, importlib, json, os, runpy, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError:
        pass
os.environ.pop("CELLSEG_PARENT", None)  # of a command that ran in the process of the tests
gc.collect()
gc.freeze()  # else each process collects them when it ends, which takes seconds
for line in sys.stdin:
    words, folder, out, err = json.loads(line)
    if process := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
        continue
    for number, name, mode in ((0, os.devnull, "r"), (1, out, "w"), (2, err, "w")):
        with open(name, mode) as file:
            os.dup2(file.fileno(), number)
    os.chdir(folder)
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = words, os.path.dirname(words[0])
        runpy.run_path(words[0], run_name="__main__")
    sys.exit()
"""


@contextlib.contextmanager
def forks(folder: Path, libraries: Sequence[str] = LIBRARIES, **environment: str) -> Iterator[Run]:
    """Yield a function that runs Python with arguments, as `subprocess.run` does with its output.

    The working folder is the project's, or `cwd`. What is printed goes through files in `folder`.
    `libraries` are loaded already, those that can be imported.
    """
    files = folder / "stdout", folder / "stderr"
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER, *libraries], env=os.environ | environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        requests, codes = server.stdin, server.stdout
        assert requests is not None
        assert codes is not None

        def run(*words: object, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
            argv = [str(word) for word in words]
            print(json.dumps([argv, str(cwd), *map(str, files)]), file=requests, flush=True)
            code = int(codes.readline())
            return subprocess.CompletedProcess(argv, code, *(path.read_text() for path in files))

        yield run
