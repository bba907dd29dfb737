"""The tool's own process: load the script, call its entrypoint, write result.json.

Runs in the child that the runner forked, with the tool's own powers and no more. Whatever the
tool does here, the runner beside it still collects what is left.
"""

import contextlib
import errno
import json
import os
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn

EXIT_FAILED = 1
EXIT_OUT_OF_MEMORY = 137  # what a shell shows for a process that was killed for its memory

# The kernel takes no variable over 128 KiB when a program starts; a margin is left for the name.
ENVIRON_MAX_BYTES = 120_000
# Lets result.json be written after the tool has filled its disk.
RESERVE_BYTES = 64 * 1024

GENERAL = "Verktyget stötte på ett oväntat fel och kunde inte slutföra körningen."
NO_MEMORY = "Verktyget behövde mer minne än det får använda."
NOT_JSON = "Verktyget svarade med värden som inte går att skriva som JSON."
DISK_FULL = "Verktyget fyllde sitt diskutrymme. Prova med färre eller mindre filer."

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ToolFailure(Exception):
    """The tool cannot go on; the message (Swedish) is for the user."""


class _Environ(type(os.environ)):  # type: ignore[misc]
    """os.environ that also holds values too long for the kernel.

    They are found by name (`os.environ[...]`, `os.getenv`) but not by iteration, so a copy of the
    environment can still be given to a subprocess.
    """

    oversize: dict[str, str]

    def __getitem__(self, key: str) -> str:
        if key in self.oversize:
            return self.oversize[key]
        return super().__getitem__(key)  # type: ignore[no-any-return]

    def __setitem__(self, key: str, value: str) -> None:
        super().__setitem__(key, value)
        self.oversize.pop(key, None)

    def __delitem__(self, key: str) -> None:
        if self.oversize.pop(key, None) is None:
            super().__delitem__(key)


def set_environment(variables: dict[str, str]) -> None:
    """Set the contract's variables in this process, however long they are."""
    oversize: dict[str, str] = {}
    for key, value in variables.items():
        if len(os.fsencode(value)) > ENVIRON_MAX_BYTES:
            oversize[key] = value
        else:
            os.environ[key] = value
    if oversize:
        os.environ.__class__ = _Environ
        os.environ.oversize = oversize  # type: ignore[attr-defined]


def run_tool(root: str, entrypoint: str) -> NoReturn:
    """Run /work/script.py in this process and leave. Never returns, also in forks of the tool."""
    me = os.getpid()
    code = EXIT_FAILED
    try:
        document, code = _call(root, entrypoint)
        if os.getpid() == me:  # a fork that the tool let run on must not answer for it
            code = _write_result(root, document) or code
    except BaseException as error:
        _print_traceback(error)
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            # Threads that the tool left running would keep a normal exit waiting.
            os._exit(code)


def _call(root: str, entrypoint: str) -> tuple[dict[str, Any], int]:
    try:
        function = _load(os.path.join(root, "script.py"), entrypoint)
        value = function(os.path.join(root, "input"), os.path.join(root, "output"))
        return _make_success(value), 0
    except ToolFailure as error:
        print(error, file=sys.stderr)
        return _make_failure(str(error)), EXIT_FAILED
    except SystemExit as error:
        return _make_exit(error)
    except MemoryError as error:
        _print_traceback(error)
        return _make_failure(NO_MEMORY), EXIT_OUT_OF_MEMORY
    except BaseException as error:
        # Who never imported the toolkit cannot have raised its error.
        toolkit = sys.modules.get("skriptoteket_toolkit")
        if isinstance(error, getattr(toolkit, "ToolUserError", ())):
            return _make_failure(str(error) or GENERAL), EXIT_FAILED
        _print_traceback(error)
        full = isinstance(error, OSError) and error.errno in _FULL
        return _make_failure(DISK_FULL if full else GENERAL), EXIT_FAILED


def _load(path: str, entrypoint: str) -> Callable[[str, str], object]:
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec")
    module = types.ModuleType("script")
    module.__file__ = path
    sys.modules["script"] = module
    exec(code, module.__dict__)
    function = getattr(module, entrypoint, None)
    if not callable(function):
        raise ToolFailure(f"Verktyget saknar funktionen {entrypoint}(input_dir, output_dir).")
    return function  # type: ignore[no-any-return]


def _make_success(value: object) -> dict[str, Any]:
    outputs: object = []
    actions: object = []
    state: object = None
    if isinstance(value, str):
        outputs = [{"kind": "html_sandboxed", "html": value}]
    elif isinstance(value, dict):
        outputs = _listed(value.get("outputs"), "outputs")
        actions = _listed(value.get("next_actions"), "next_actions")
        state = value.get("state")
        if state is not None and not isinstance(state, dict):
            raise ToolFailure("Verktyget svarade fel: state ska vara ett objekt eller saknas.")
    elif value is not None:
        raise ToolFailure(
            "Verktyget svarade fel: run_tool ska returnera text, ett objekt eller inget alls, "
            f"inte {type(value).__name__}."
        )
    return {
        "contract_version": 2,
        "status": "succeeded",
        "outputs": outputs,
        "next_actions": actions,
        "state": state,
    }


def _listed(value: object, name: str) -> object:
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise ToolFailure(f"Verktyget svarade fel: {name} ska vara en lista.")
    return value


def _make_failure(summary: str) -> dict[str, Any]:
    return {
        "contract_version": 2,
        "status": "failed",
        "error_summary": summary,
        "outputs": [],
        "next_actions": [],
        "state": None,
    }


def _make_exit(error: SystemExit) -> tuple[dict[str, Any], int]:
    if error.code is None or error.code == 0:
        return _make_success(None), 0
    if isinstance(error.code, int):
        code = error.code & 0xFF or EXIT_FAILED
    else:  # sys.exit("words") prints them and exits with 1
        print(error.code, file=sys.stderr)
        code = EXIT_FAILED
    return _make_failure(f"Verktyget avslutade sig självt med felkod {code}."), code


def _write_result(root: str, document: dict[str, Any]) -> int:
    """Write result.json. Returns the exit code that a failure to do so gives, else 0."""
    code = 0
    try:
        data = _encode({**document, "artifacts": _list_files(os.path.join(root, "output"))})
    except MemoryError:
        data, code = _encode(_make_failure(NO_MEMORY)), EXIT_OUT_OF_MEMORY
    except (TypeError, ValueError, RecursionError) as error:
        print(f"result.json: {type(error).__name__}: {error}", file=sys.stderr)
        data, code = _encode(_make_failure(NOT_JSON)), EXIT_FAILED
    path = os.path.join(root, "result.json")
    try:
        _replace(path, data)
    except OSError:
        os.unlink(os.path.join(root, ".reserve"))
        try:
            _replace(path, data)
        except OSError:
            _replace(path, _encode(_make_failure(DISK_FULL)))
            return EXIT_FAILED
    return code


def _encode(document: dict[str, Any]) -> bytes:
    # A lone surrogate has no UTF-8; backslashreplace gives just the escape that JSON has for it.
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _replace(path: str, data: bytes) -> None:
    # Replaced, not opened: what the tool planted there (a link, a pipe) is never written through.
    with open(path + ".new", "wb") as file:
        file.write(data)
    os.replace(path + ".new", path)


def _list_files(top: str, limit: int = 1000) -> list[dict[str, Any]]:
    """List what lies in output/, for information only: the runner looks for itself."""
    found: list[dict[str, Any]] = []
    waiting = [top]
    while waiting and len(found) < limit:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    size = entry.stat(follow_symlinks=False).st_size
                    found.append({"path": os.path.relpath(entry.path, top), "bytes": size})
    return found[:limit]


def _print_traceback(error: BaseException) -> None:
    """Print the traceback from the tool's first frame on: ours tell its author nothing."""
    import traceback

    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename == __file__:
        tb = tb.tb_next
    traceback.print_exception(type(error), error, tb)
