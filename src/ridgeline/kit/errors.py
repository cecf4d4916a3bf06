"""Error kinds. A message says what happened, the limit and the cure (DESIGN promise 4)."""


class RidgelineError(Exception):
    """Anything Ridgeline raises on purpose."""


class UserError(RidgelineError):
    """Something a person asked for cannot be done as asked. CLI exit code 2."""


class CapacityError(UserError):
    """What was asked for does not fit; the message carries the itemised bill."""


class InvariantError(RidgelineError):
    """Our own bookkeeping is wrong. CLI exit code 70; never the user's fault."""
