"""How a guard's threshold is chosen on held-out questions: by the best Hmean, a recall, or a share that is dropped."""

import re
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field

MAX_HMEAN, RECALL, DROP = "max-hmean", "recall", "drop"
ALLOWED = "max-hmean, recall=SHARE or drop=SHARE, as recall=0.9 or drop=0.05"
_WITH_SHARE = re.compile(rf"({RECALL}|{DROP})=(\d*\.?\d+(?:e-?\d+)?)")


class ThresholdRule(NamedTuple):
    """A rule, with its share where it has one."""

    name: str
    """`max-hmean`; `recall`: of what is harmful, the share that is found; `drop`: of what is acceptable, the share that
    is dropped."""
    share: float | None = None
    """0 < share <= 1 of `recall`; 0 <= share < 1 of `drop`."""


def parse_rule(text: str) -> ThresholdRule:
    """The rule that a text names; raises ValueError, which says what is allowed."""
    if text == MAX_HMEAN:
        return ThresholdRule(MAX_HMEAN)
    matched = _WITH_SHARE.fullmatch(text)
    if matched is None:
        raise ValueError(f"must be {ALLOWED}")
    name, share = matched[1], float(matched[2])
    if name == RECALL and not 0 < share <= 1:
        raise ValueError("a recall must be more than 0 and at most 1")
    if name == DROP and not 0 <= share < 1:
        raise ValueError("a share that is dropped must be at least 0 and less than 1")
    return ThresholdRule(name, share)


def _checked(text: str) -> str:
    parse_rule(text)
    return text


_SAYS: dict[str, Any] = {"says": ALLOWED}
RuleText = Annotated[str, Field(json_schema_extra=_SAYS), AfterValidator(_checked)]
