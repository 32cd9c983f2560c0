"""One JSON object from text of any origin: it can be written again, or it is refused here."""

from __future__ import annotations

import json
import re
from typing import Any

from echat.data.defects import DataError, Defect, Kind

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that may be half of a character


def json_object(text: str, file: str, place: str) -> dict[str, Any]:
    """The object on one line. Raises DataError that names file and place, whatever the text is.

    Half characters (lone surrogates) are refused here: no file can hold them, and where one is met later
    there is no line to name.
    """
    try:
        row = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        found = ascii(error.object[error.start])
        reason = f"expected characters, found half of one ({found}); write it as UTF-8"
        raise DataError(Defect(Kind.BAD_TEXT, file, place, reason=reason)) from error
    except (ValueError, RecursionError) as error:  # also numbers of more digits than Python converts
        reason = f"expected a JSON object, {error or 'found nesting without end'}"
        raise DataError(Defect(Kind.BAD_JSON, file, place, reason=reason)) from error
    if not isinstance(row, dict):
        reason = f"expected a JSON object, found {type(row).__name__}"
        raise DataError(Defect(Kind.BAD_JSON, file, place, reason=reason))
    return row
