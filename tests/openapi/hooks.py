"""A request that waits for a state does not wait: the volumes here never get further."""

import schemathesis


@schemathesis.hook
def before_call(context, case, kwargs):
    query = case.query or {}
    try:
        valid = 0 <= float(query.get("timeout_seconds", 60)) <= 3600
    except (TypeError, ValueError):
        return
    if valid and "wait" in query:
        query["timeout_seconds"] = 0
