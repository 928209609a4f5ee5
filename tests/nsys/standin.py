"""An `nsys` that records what it is told: the program, and what it puts into the processes that it starts.

Like NVIDIA's it starts the application in a session of its own, ends with its status, ends it where --duration is over
unless --kill=none, and leaves no report of an application that ends before --delay. Its report is JSON: the `options`,
the `command`, and the `ranges` that were opened in each process, in their order. `NSYS_WRITES_S` is how long it takes
to write; with `NSYS_DEAF` it does not end when it is asked to, and neither does a process that it leaves behind.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main(arguments):
    if arguments == ["--version"]:
        print("NVIDIA Nsight Systems version 2026.1.1.1-1")
        return 0
    number = next(i for i, word in enumerate(arguments) if i and not word.startswith("-") and arguments[i - 1] != "-o")
    options, command = arguments[1:number], arguments[number:]
    named = dict(option.split("=") for option in options if "=" in option)
    delay, duration = (int(named.get(name, 0)) for name in ("--delay", "--duration"))
    report = Path(options[options.index("-o") + 1].replace("%%", "%") + ".nsys-rep")
    heard = report.with_suffix(".heard")
    injected = os.pathsep.join(filter(None, [str(Path(__file__).parent / "heard"), os.environ.get("PYTHONPATH")]))
    if "NSYS_DEAF" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        left = subprocess.Popen(["sleep", "60"], start_new_session=True)
        report.with_suffix(".left").write_text(str(left.pid))
    start = time.monotonic()
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": injected, "NSYS_HEARD": str(heard)}, start_new_session=True
    )
    try:
        status = process.wait(delay + duration if duration else None)
    except subprocess.TimeoutExpired:
        status = 0
        if named.get("--kill") != "none":
            process.terminate()
    if time.monotonic() - start >= delay:
        time.sleep(float(os.environ.get("NSYS_WRITES_S", 0)))
        lines = heard.read_text().splitlines() if heard.exists() else []
        ranges = {}
        for pid, name in map(json.loads, lines):
            ranges.setdefault(pid, []).append(name)
        report.write_text(json.dumps({"options": options, "command": command, "ranges": list(ranges.values())}))
        print("Generated:", report, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
