"""A process that has imported what commands import, and forks for each command.

Python's start and the imports are most of what a command takes; here they are paid once. A fork has a
directory, arguments, environment and output of its own, and ends as any process.

    python -m tests.forkserver

reads requests, one line of JSON each, and answers with the exit code of the command.
"""

import atexit
import importlib
import json
import os
import pkgutil
import runpy
import signal
import sys
import threading
import traceback

LIBRARIES = (
    *("transformers.models.whisper.modeling_whisper", "altair", "vl_convert", "jiwer", "soundfile", "soxr"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.artifacts", "mlflow.data", "alembic.command"),
)
LONGEST = 300  # seconds


def import_all() -> None:
    """The libraries, and all of wq but what is run; and what they do once in a process."""
    import sqlalchemy.orm

    import wq
    from wq.study.spec.composition import register_schema

    for name in LIBRARIES:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(wq.__path__, "wq."):
        if module.name not in ("wq.main", "wq.__main__", "wq.numerics.fused_kernel"):
            importlib.import_module(module.name)
    register_schema()
    sqlalchemy.orm.configure_mappers()
    assert threading.active_count() == 1, "a fork would be without the other threads"


def become(module: str, arguments: list[str], directory: str, environment: dict[str, str], output: list[str]):
    """Go on as `python -m MODULE ARGUMENTS`, and end.

    output   the files that stdout and stderr are written to
    """
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate([os.devnull, *output]):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    signal.alarm(LONGEST)
    sys.argv[1:] = arguments
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code))  # what Python would take apart first is the server's too, and would be copied for it


def main() -> None:
    import_all()
    for line in sys.stdin:
        process = os.fork()
        if not process:
            become(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
