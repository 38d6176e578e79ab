"""What one process does for all."""

from collections.abc import Callable
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
