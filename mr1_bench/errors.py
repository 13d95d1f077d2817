"""The exceptions a user can cause. It must not know any other module: everything may import it.

A `UserError` carries a message that says what failed, the value seen, what was expected and what to do next; the command line prints it
without a traceback and exits with 2.
"""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend; its message is the advice."""
