"""The PyPI client `cs`, one call a line: {"command": ..., "with": {...}, "client": {...}} in; {"ok": ...} or {"error": ...} out.

{"sign": {...}, "secret": ...} in: the signature out. `java` in a request has values encoded as Java does it, which differs in `~` alone.
"""

import json
import sys

import cs.client
import requests

url, usual = sys.argv[1], {"key": sys.argv[2], "secret": sys.argv[3], "method": "post", "poll_interval": 0.05, "job_timeout": 20}
as_it_is = cs.client.cs_encode

for line in sys.stdin:
    request = json.loads(line)
    java = request.get("java", False)
    cs.client.cs_encode = (lambda text: as_it_is(text).replace("~", "%7E")) if java else as_it_is
    if "sign" in request:
        signed = dict(request["sign"])
        cs.client.CloudStack(url, key=signed["apikey"], secret=request["secret"])._sign(signed)
        print(json.dumps(signed["signature"]), flush=True)
        continue
    client = cs.client.CloudStack(url, **{**usual, **request.get("client", {})})
    try:
        answer = {"ok": getattr(client, request["command"])(**request.get("with", {}))}
    except cs.client.CloudStackApiException as error:
        status = error.response.status_code
        answer = {"error": {"what": "refused", "status": status, "said": error.error}}
    except Exception as error:  # noqa: BLE001 (whatever it is, the test looks at its name)
        answer = {"error": {"what": type(error).__name__, "said": str(error)}}
    print(json.dumps(answer), flush=True)
