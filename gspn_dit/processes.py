"""What one process does for all."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from accelerate.utils import broadcast_object_list

from gspn_dit.errors import UserError

Result = TypeVar("Result")


def on_main_process(main: bool, action: Callable[[], Result]) -> Result:
    """The result of `action`, done on the main process alone; its `UserError` is raised on every process.

    Raised on one alone, it would leave the others waiting. Every process must call this.
    """
    result, problem = None, None
    if main:
        try:
            result = action()
        except UserError as error:
            problem = str(error)
    result, problem = broadcast_object_list([result, problem])
    if problem is not None:
        raise UserError(problem)
    return result


@contextlib.contextmanager
def held_for_all(main: bool, lock: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    """Hold a lock on the main process, on behalf of all; see `on_main_process`."""
    with contextlib.ExitStack() as stack:
        on_main_process(main, lambda: stack.enter_context(lock))
        yield
